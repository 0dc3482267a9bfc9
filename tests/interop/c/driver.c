/*
 * The matrix test's hand on this client: a command for each line of standard input, an answer for each on standard
 * output, both msgpack in hex.
 */
#define _GNU_SOURCE
#include "kingtask.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

static kt_client *client;
static char broker[256];

/* What a command needs lives as long as the command: in its zone. */
static void *in_zone(msgpack_zone *zone, size_t size)
{
    void *room = msgpack_zone_malloc(zone, size ? size : 1);
    if (!room)
        abort();
    return memset(room, 0, size);
}

static const char *text(msgpack_zone *zone, const msgpack_object *string)
{
    if (!string || string->type != MSGPACK_OBJECT_STR)
        return NULL;
    char *copy = in_zone(zone, string->via.str.size + 1);
    return memcpy(copy, string->via.str.ptr, string->via.str.size);
}

static const char *const *texts(msgpack_zone *zone, const msgpack_object *array, size_t *count)
{
    *count = array ? array->via.array.size : 0;
    const char **all = in_zone(zone, *count * sizeof *all);
    for (size_t i = 0; i < *count; i++)
        all[i] = text(zone, &array->via.array.ptr[i]);
    return all;
}

static kt_task task_from(msgpack_zone *zone, const msgpack_object *map)
{
    kt_task task = KT_TASK;
    const msgpack_object *field;
    if ((field = kt_field(map, "id")))
        snprintf(task.id, sizeof task.id, "%s", text(zone, field));
    task.name = text(zone, kt_field(map, "name"));
    task.args = texts(zone, kt_field(map, "args"), &task.args_count);
    task.start_at = kt_number(kt_field(map, "start_at"));
    task.delay_s = kt_number(kt_field(map, "delay_s"));
    if ((field = kt_field(map, "retry"))) {
        double *retry = in_zone(zone, field->via.array.size * sizeof *retry);
        for (task.retry_count = 0; task.retry_count < field->via.array.size; task.retry_count++)
            retry[task.retry_count] = kt_number(&field->via.array.ptr[task.retry_count]);
        task.retry = retry;
    }
    task.queue = text(zone, kt_field(map, "queue"));
    if ((field = kt_field(map, "priority")))
        task.priority = (int)kt_number(field);
    if ((field = kt_field(map, "stdin"))) {
        task.in = field->via.bin.ptr;
        task.in_size = field->via.bin.size;
    }
    if ((field = kt_field(map, "env"))) {
        kt_variable *env = in_zone(zone, field->via.map.size * sizeof *env);
        for (task.env_count = 0; task.env_count < field->via.map.size; task.env_count++) {
            env[task.env_count].name = text(zone, &field->via.map.ptr[task.env_count].key);
            env[task.env_count].value = text(zone, &field->via.map.ptr[task.env_count].val);
        }
        task.env = env;
    }
    task.tags = texts(zone, kt_field(map, "tags"), &task.tags_count);
    return task;
}

static void put(msgpack_packer *p, const char *string)
{
    msgpack_pack_str_with_body(p, string, strlen(string));
}

/* {"ok": value}, or what went wrong; the value is a field of the reply, or all of it. */
static void answer(msgpack_packer *p, kt_status status, const kt_reply *reply, const char *field)
{
    static const char *const kinds[] = {"", "refused", "no_answer", "pending"};
    msgpack_pack_map(p, status == KT_OK ? 1 : 2);
    if (status == KT_OK) {
        put(p, "ok");
        msgpack_pack_object(p, field ? *kt_field(&reply->fields, field) : reply->fields);
        return;
    }
    put(p, "kind");
    put(p, kinds[status]);
    put(p, "error");
    if (status != KT_REFUSED) {
        put(p, "");
        return;
    }
    const kt_error *error = &reply->error;
    msgpack_pack_map(p, 4 + (error->field[0] != 0) + (error->retry_after_s != 0));
    put(p, "code");
    put(p, error->code);
    put(p, "message");
    put(p, error->message);
    put(p, "retryable");
    error->retryable ? msgpack_pack_true(p) : msgpack_pack_false(p);
    put(p, "stored");
    put(p, error->stored_unknown ? "unknown" : "no");
    if (error->field[0]) {
        put(p, "field");
        put(p, error->field);
    }
    if (error->retry_after_s != 0) {
        put(p, "retry_after_s");
        msgpack_pack_double(p, error->retry_after_s);
    }
}

static void pipeline(msgpack_packer *p, kt_task *tasks, size_t count)
{
    kt_reply *replies = calloc(count, sizeof *replies);
    kt_status *statuses = calloc(count, sizeof *statuses);
    kt_submit_each(client, tasks, count, replies, statuses);
    size_t bad = 0;
    while (bad < count && statuses[bad] == KT_OK)
        bad++;
    if (bad < count) {
        answer(p, statuses[bad], &replies[bad], NULL);
    } else {
        msgpack_pack_map(p, 1);
        put(p, "ok");
        msgpack_pack_array(p, count);
        for (size_t i = 0; i < count; i++)
            msgpack_pack_object(p, replies[i].fields);
    }
    for (size_t i = 0; i < count; i++)
        kt_reply_free(&replies[i]);
    free(replies);
    free(statuses);
}

static void exchange(msgpack_packer *p, const msgpack_object *frames)
{
    void *context = zmq_ctx_new(), *socket = zmq_socket(context, ZMQ_DEALER);
    int linger_ms = 0, more = 1;
    size_t count = 0;
    zmq_msg_t received[4];
    zmq_setsockopt(socket, ZMQ_LINGER, &linger_ms, sizeof linger_ms);
    zmq_connect(socket, broker);
    for (uint32_t i = 0; i < frames->via.array.size; i++) {
        const msgpack_object *frame = &frames->via.array.ptr[i];
        zmq_send(socket, frame->via.bin.ptr, frame->via.bin.size, i + 1 < frames->via.array.size ? ZMQ_SNDMORE : 0);
    }
    for (; more && count < 4; count++) {
        zmq_msg_init(&received[count]);
        zmq_msg_recv(&received[count], socket, 0);
        more = zmq_msg_more(&received[count]);
    }
    msgpack_pack_map(p, 1);
    put(p, "ok");
    msgpack_pack_array(p, count);
    for (size_t i = 0; i < count; i++) {
        msgpack_pack_bin_with_body(p, zmq_msg_data(&received[i]), zmq_msg_size(&received[i]));
        zmq_msg_close(&received[i]);
    }
    zmq_close(socket);
    zmq_ctx_term(context);
}

static bool open_client(msgpack_zone *zone, const msgpack_object *command)
{
    char list[1024] = "";
    size_t count;
    const char *const *brokers = texts(zone, kt_field(command, "brokers"), &count);
    for (size_t i = 0; i < count; i++)
        snprintf(list + strlen(list), sizeof list - strlen(list), ",%s", brokers[i]);
    snprintf(broker, sizeof broker, "tcp://%s", brokers[0]);
    if (client)
        kt_close(client);
    client = kt_open(list, kt_number(kt_field(command, "timeout_s")));
    const msgpack_object *keys = kt_field(command, "keys");
    return !keys || kt_use_keys(client, text(zone, kt_field(keys, "server")), text(zone, kt_field(keys, "public")),
                                text(zone, kt_field(keys, "secret")));
}

static void carry_out(msgpack_packer *p, msgpack_zone *zone, const msgpack_object *command)
{
    const msgpack_object *what = kt_field(command, "do"), *message = kt_field(command, "message"),
                         *several = kt_field(command, "tasks");
    const char *id = text(zone, kt_field(command, "id"));
    size_t count = several ? several->via.array.size : 0;
    kt_task one = task_from(zone, kt_field(command, "task")), *tasks = in_zone(zone, count * sizeof *tasks);
    for (size_t i = 0; i < count; i++)
        tasks[i] = task_from(zone, &several->via.array.ptr[i]);
    kt_reply reply = KT_REPLY;
    if (kt_is(what, "open")) {
        if (open_client(zone, command)) {
            answer(p, KT_OK, &reply, NULL);
        } else {
            msgpack_pack_map(p, 2);
            put(p, "kind");
            put(p, "usage");
            put(p, "error");
            put(p, "keys");
        }
    } else if (kt_is(what, "ping")) {
        answer(p, kt_ping(client, &reply), &reply, NULL);
    } else if (kt_is(what, "submit")) {
        answer(p, kt_submit(client, &one, &reply), &reply, NULL);
    } else if (kt_is(what, "submit_many")) {
        answer(p, kt_submit_many(client, tasks, count, &reply), &reply, "outcomes");
    } else if (kt_is(what, "pipeline")) {
        pipeline(p, tasks, count);
    } else if (kt_is(what, "get")) {
        answer(p, kt_get(client, id, &reply), &reply, "task");
    } else if (kt_is(what, "wait")) {
        answer(p, kt_wait(client, id, kt_number(kt_field(command, "timeout_s")), &reply), &reply, "task");
    } else if (kt_is(what, "cancel")) {
        answer(p, kt_cancel(client, id, &reply), &reply, "outcome");
    } else if (kt_is(what, "read")) {
        answer(p, kt_read_reply(message->via.bin.ptr, message->via.bin.size, &reply), &reply, NULL);
    } else if (kt_is(what, "exchange")) {
        exchange(p, kt_field(command, "frames"));
    }
    kt_reply_free(&reply);
}

static int digit(char hex)
{
    return hex <= '9' ? hex - '0' : hex - 'a' + 10;
}

int main(void)
{
    char *line = NULL;
    size_t room = 0;
    ssize_t length;
    while ((length = getline(&line, &room, stdin)) > 0) {
        size_t size = (size_t)length / 2;
        for (size_t i = 0; i < size; i++)
            line[i] = (char)(digit(line[2 * i]) << 4 | digit(line[2 * i + 1]));
        msgpack_unpacked command;
        msgpack_unpacked_init(&command);
        size_t offset = 0;
        if (msgpack_unpack_next(&command, line, size, &offset) != MSGPACK_UNPACK_SUCCESS)
            abort();
        msgpack_sbuffer out;
        msgpack_packer p;
        msgpack_sbuffer_init(&out);
        msgpack_packer_init(&p, &out, msgpack_sbuffer_write);
        carry_out(&p, command.zone, &command.data);
        for (size_t i = 0; i < out.size; i++)
            printf("%02x", (unsigned char)out.data[i]);
        putchar('\n');
        fflush(stdout);
        msgpack_sbuffer_destroy(&out);
        msgpack_unpacked_destroy(&command);
    }
    free(line);
    if (client)
        kt_close(client);
    return 0;
}
