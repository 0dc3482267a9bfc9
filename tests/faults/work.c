/* The executable of the fault cases: work MS FAILS BYTES [ANYTHING…]

   Appends `start` to the ledger, sleeps MS, prints BYTES (at least the line that names this attempt), appends `end` and
   exits, with status 1 if its attempt is among the first FAILS. Each line is one write to a file opened with O_APPEND.
   Built by workplace.py with -DLEDGER="…". */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct digest { uint32_t crc; unsigned long size; };

static void feed(struct digest *d, const char *bytes, size_t n) {
    uint32_t crc = ~d->crc;
    d->size += n;
    while (n--) {
        crc ^= (unsigned char)*bytes++;
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
    }
    d->crc = ~crc;
}

static const char *variable(const char *name) {
    const char *value = getenv(name);
    return value ? value : "?";
}

static void note(const char *event, const char *more) {
    char line[4096];
    struct timespec now;
    int fd = open(LEDGER, O_WRONLY | O_APPEND | O_CLOEXEC);
    clock_gettime(CLOCK_MONOTONIC, &now);
    int n = snprintf(line, sizeof line, "%s %s %s %lld %d worker=%s %s\n", variable("KINGTASK_ID"),
                     variable("KINGTASK_ATTEMPT"), event, now.tv_sec * 1000000000LL + now.tv_nsec, getpid(),
                     variable("KINGTASK_WORKER"), more);
    if (fd < 0 || write(fd, line, n) != n) abort();
    close(fd);
}

static void put(struct digest *d, const char *bytes, size_t n) {
    feed(d, bytes, n);
    while (n) {
        ssize_t done = write(1, bytes, n);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) _exit(2);
        bytes += done, n -= done;
    }
}

int main(int argc, char **argv) {
    struct digest args = {0}, input = {0}, output = {0};
    char buffer[65536], more[256];
    ssize_t n;
    for (int i = 1; i < argc; i++) feed(&args, argv[i], strlen(argv[i]) + 1);
    while ((n = read(0, buffer, sizeof buffer)) > 0) feed(&input, buffer, n);
    snprintf(more, sizeof more, "args=%08x:%lu stdin=%08x:%lu", args.crc, args.size, input.crc, input.size);
    note("start", more);

    long ms = argc > 1 ? atol(argv[1]) : 0, fails = argc > 2 ? atol(argv[2]) : 0, bytes = argc > 3 ? atol(argv[3]) : 0;
    struct timespec left = {ms / 1000, ms % 1000 * 1000000};
    while (nanosleep(&left, &left) && errno == EINTR) continue;

    int status = atol(variable("KINGTASK_ATTEMPT")) <= fails;
    n = snprintf(buffer, sizeof buffer, "%s %s %d\n", variable("KINGTASK_ID"), variable("KINGTASK_ATTEMPT"), getpid());
    put(&output, buffer, n);
    memset(buffer, 'x', sizeof buffer);
    for (bytes -= n; bytes > 0; bytes -= n) {
        n = bytes < (long)sizeof buffer ? bytes : (long)sizeof buffer;
        put(&output, buffer, n);
    }
    snprintf(more, sizeof more, "exit=%d out=%08x:%lu err=00000000:0", status, output.crc, output.size);
    note("end", more);
    return status;
}
