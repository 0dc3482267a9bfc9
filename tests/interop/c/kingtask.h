/*
 * A client for version 1 of the kingtask protocol, on libzmq and msgpack-c.
 *
 * Every call blocks, and asks one broker after the other until one answers for good or the client's time is over; what
 * is sent again is sent unchanged, so it has one effect. A client belongs to one thread at a time.
 */
#ifndef KINGTASK_H
#define KINGTASK_H

#include <msgpack.h>
#include <stdbool.h>
#include <stddef.h>

typedef struct kt_client kt_client;

typedef enum {
    KT_OK,
    KT_REFUSED,   /* the broker said no: see kt_error */
    KT_NO_ANSWER, /* no broker answered in time; a submit may have been stored: send it again with the same id */
    KT_PENDING,   /* the task had not ended within the time given; it goes on */
} kt_status;

/* A broker's error. `code` is the protocol's; field is empty and retry_after_s 0 if there is none. */
typedef struct {
    char code[64];
    char message[1024];
    char field[256];
    bool retryable;
    bool stored_unknown; /* it may have been stored; otherwise nothing was */
    double retry_after_s;
} kt_error;

typedef struct {
    const char *name, *value;
} kt_variable;

/* What to run; start from KT_TASK. Whatever is zero is left to the broker, and priority if it is negative. */
typedef struct {
    char id[37]; /* chosen by kt_submit if empty */
    const char *name;
    const char *const *args;
    size_t args_count;
    double start_at, delay_s; /* epoch seconds, or seconds */
    const double *retry;      /* seconds to wait after the first failure, the second, ... */
    size_t retry_count;
    const char *queue;
    int priority;
    double time_limit_s;
    const void *in; /* its standard input */
    size_t in_size;
    const kt_variable *env;
    size_t env_count;
    const char *const *tags;
    size_t tags_count;
    const char *on_lost, *stderr_means;
    double keep_result_s, expires_at;
} kt_task;

#define KT_TASK {.priority = -1}

/* A reply. `fields` is its map; it lives until kt_reply_free, which may be called for any status. */
typedef struct {
    void *message; /* the fields' texts and bytes stand in it */
    msgpack_unpacked unpacked;
    msgpack_object fields;
    kt_error error;
} kt_reply;

#define KT_REPLY {0}

/* Brokers such as "127.0.0.1:9595,tcp://host:9595"; timeout_s is what a call may take in all. */
kt_client *kt_open(const char *brokers, double timeout_s);
/*
 * Before the first call, for brokers that ask for keys (CURVE): theirs and your own pair, in Z85. False if one is no
 * key, or this libzmq cannot encrypt: close the client then.
 */
bool kt_use_keys(kt_client *client, const char *server_key, const char *public_key, const char *secret_key);
void kt_close(kt_client *client);

kt_status kt_ping(kt_client *client, kt_reply *reply);
kt_status kt_submit(kt_client *client, kt_task *task, kt_reply *reply);
/* Up to 1,000 in one message; `outcomes` of the reply has one each, in order. */
kt_status kt_submit_many(kt_client *client, kt_task *tasks, size_t count, kt_reply *reply);
/* Any number, a message each, many under way at a time; a reply and a status each, in order. */
void kt_submit_each(kt_client *client, kt_task *tasks, size_t count, kt_reply *replies, kt_status *statuses);
kt_status kt_get(kt_client *client, const char *id, kt_reply *reply);
/* The reply's `task` once it has ended, however it did. */
kt_status kt_wait(kt_client *client, const char *id, double timeout_s, kt_reply *reply);
kt_status kt_cancel(kt_client *client, const char *id, kt_reply *reply);

/* Read a reply's bytes: KT_OK, KT_REFUSED, or KT_NO_ANSWER if they are none. They are copied. */
kt_status kt_read_reply(const void *message, size_t size, kt_reply *reply);
void kt_reply_free(kt_reply *reply);

/* A field of a map, or NULL; what a number is, or 0; whether a string or bytes are this text. */
const msgpack_object *kt_field(const msgpack_object *map, const char *name);
double kt_number(const msgpack_object *value);
bool kt_is(const msgpack_object *string, const char *text);

#endif
