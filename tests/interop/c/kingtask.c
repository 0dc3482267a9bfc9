#define _GNU_SOURCE
#include "kingtask.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <zmq.h>

#define PATIENCE_S 3.0 /* of silence, then the broker counts as lost */
#define PAGE_S 60.0    /* of one wait request; longer ones are asked again */
#define UNDER_WAY 500  /* requests; a broker drops the replies that nobody reads */
#define BROKERS 16

struct kt_client {
    void *context, *socket; /* the socket is that of the current broker, NULL if it has to be made */
    char *brokers[BROKERS];
    size_t count, current;
    double timeout_s;
    uint64_t last_rid;
    bool keyed;
    uint8_t keys[3][32]; /* the broker's, the own pair: in the order of key_options */
};

static const int key_options[] = {ZMQ_CURVE_SERVERKEY, ZMQ_CURVE_PUBLICKEY, ZMQ_CURVE_SECRETKEY};

/* Of a map, packed one after the other: its head is packed when all are there and counted. */
typedef struct {
    msgpack_sbuffer bytes;
    msgpack_packer packer;
    size_t count;
} fields;

/* One request of a call. It is packed but for its rid. */
typedef struct {
    fields fields;
    uint64_t rid;
    bool answered;
    kt_reply *reply;
    kt_status status;
} request;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void rest(double seconds)
{
    struct timespec t = {(time_t)seconds, (long)(fmod(seconds, 1) * 1e9)};
    nanosleep(&t, NULL);
}

static void choose_id(char id[37])
{
    unsigned char b[16];
    if (id[0] || getrandom(b, sizeof b, 0) != (ssize_t)sizeof b)
        return;
    b[6] = (b[6] & 0x0f) | 0x40; /* version 4 */
    b[8] = (b[8] & 0x3f) | 0x80;
    for (size_t i = 0, at = 0; i < sizeof b; i++)
        at += (size_t)sprintf(id + at, i == 4 || i == 6 || i == 8 || i == 10 ? "-%02x" : "%02x", b[i]);
}

/* -- packing ------------------------------------------------------------------------------------------------------- */

static void pack_text(msgpack_packer *p, const char *text)
{
    msgpack_pack_str_with_body(p, text, strlen(text));
}

static void begin(fields *f)
{
    f->count = 0;
    msgpack_sbuffer_init(&f->bytes);
    msgpack_packer_init(&f->packer, &f->bytes, msgpack_sbuffer_write);
}

/* The value comes next. */
static msgpack_packer *put(fields *f, const char *key)
{
    f->count++;
    pack_text(&f->packer, key);
    return &f->packer;
}

static void put_text(fields *f, const char *key, const char *text)
{
    if (text)
        pack_text(put(f, key), text);
}

static void put_texts(fields *f, const char *key, const char *const *texts, size_t count)
{
    if (count)
        msgpack_pack_array(put(f, key), count);
    for (size_t i = 0; i < count; i++)
        pack_text(&f->packer, texts[i]);
}

static void put_number(fields *f, const char *key, double number)
{
    if (number != 0)
        msgpack_pack_double(put(f, key), number);
}

static void pack_task(fields *into, kt_task *task)
{
    fields f;
    begin(&f);
    choose_id(task->id);
    put_text(&f, "id", task->id);
    put_text(&f, "name", task->name);
    put_texts(&f, "args", task->args, task->args_count);
    put_number(&f, "start_at", task->start_at);
    put_number(&f, "delay_s", task->delay_s);
    if (task->retry_count)
        msgpack_pack_array(put(&f, "retry"), task->retry_count);
    for (size_t i = 0; i < task->retry_count; i++)
        msgpack_pack_double(&f.packer, task->retry[i]);
    put_text(&f, "queue", task->queue);
    if (task->priority >= 0)
        msgpack_pack_int(put(&f, "priority"), task->priority);
    put_number(&f, "time_limit_s", task->time_limit_s);
    if (task->in_size)
        msgpack_pack_bin_with_body(put(&f, "stdin"), task->in, task->in_size);
    if (task->env_count)
        msgpack_pack_map(put(&f, "env"), task->env_count);
    for (size_t i = 0; i < task->env_count; i++) {
        pack_text(&f.packer, task->env[i].name);
        pack_text(&f.packer, task->env[i].value);
    }
    put_texts(&f, "tags", task->tags, task->tags_count);
    put_text(&f, "on_lost", task->on_lost);
    put_text(&f, "stderr", task->stderr_means);
    put_number(&f, "keep_result_s", task->keep_result_s);
    put_number(&f, "expires_at", task->expires_at);
    msgpack_pack_map(&into->packer, f.count);
    msgpack_sbuffer_write(&into->bytes, f.bytes.data, f.bytes.size);
    msgpack_sbuffer_destroy(&f.bytes);
}

/* In its place: a request must not be moved. */
static fields *begin_request(request *r, kt_reply *reply, const char *op)
{
    *r = (request){.reply = reply, .status = KT_NO_ANSWER};
    begin(&r->fields);
    msgpack_pack_int(put(&r->fields, "v"), 1);
    put_text(&r->fields, "op", op);
    return &r->fields;
}

/* -- reading ------------------------------------------------------------------------------------------------------- */

bool kt_is(const msgpack_object *string, const char *text)
{
    /* str and bin have the same layout in the union */
    return string && (string->type == MSGPACK_OBJECT_STR || string->type == MSGPACK_OBJECT_BIN) &&
           string->via.str.size == strlen(text) && !memcmp(string->via.str.ptr, text, strlen(text));
}

const msgpack_object *kt_field(const msgpack_object *map, const char *name)
{
    for (uint32_t i = 0; map && map->type == MSGPACK_OBJECT_MAP && i < map->via.map.size; i++)
        if (kt_is(&map->via.map.ptr[i].key, name))
            return &map->via.map.ptr[i].val;
    return NULL;
}

double kt_number(const msgpack_object *value)
{
    if (value && (value->type == MSGPACK_OBJECT_FLOAT32 || value->type == MSGPACK_OBJECT_FLOAT64))
        return value->via.f64;
    if (value && value->type == MSGPACK_OBJECT_NEGATIVE_INTEGER)
        return (double)value->via.i64;
    return value && value->type == MSGPACK_OBJECT_POSITIVE_INTEGER ? (double)value->via.u64 : 0;
}

static bool truth(const msgpack_object *value)
{
    return value && value->type == MSGPACK_OBJECT_BOOLEAN && value->via.boolean;
}

static void copy_text(char *to, size_t size, const msgpack_object *text)
{
    if (text && text->type == MSGPACK_OBJECT_STR)
        snprintf(to, size, "%.*s", (int)text->via.str.size, text->via.str.ptr);
}

kt_status kt_read_reply(const void *message, size_t size, kt_reply *reply)
{
    *reply = (kt_reply)KT_REPLY;
    msgpack_unpacked_init(&reply->unpacked);
    size_t offset = 0;
    if (!(reply->message = malloc(size + 1)))
        abort();
    memcpy(reply->message, message, size);
    if (msgpack_unpack_next(&reply->unpacked, reply->message, size, &offset) != MSGPACK_UNPACK_SUCCESS)
        return KT_NO_ANSWER;
    reply->fields = reply->unpacked.data;
    if (truth(kt_field(&reply->fields, "ok")))
        return KT_OK;
    const msgpack_object *error = kt_field(&reply->fields, "error");
    if (!error)
        return KT_NO_ANSWER;
    copy_text(reply->error.code, sizeof reply->error.code, kt_field(error, "code"));
    copy_text(reply->error.message, sizeof reply->error.message, kt_field(error, "message"));
    copy_text(reply->error.field, sizeof reply->error.field, kt_field(error, "field"));
    reply->error.retryable = truth(kt_field(error, "retryable"));
    reply->error.stored_unknown = kt_is(kt_field(error, "stored"), "unknown");
    reply->error.retry_after_s = kt_number(kt_field(error, "retry_after_s"));
    return KT_REFUSED;
}

void kt_reply_free(kt_reply *reply)
{
    if (reply->unpacked.zone)
        msgpack_unpacked_destroy(&reply->unpacked);
    free(reply->message);
    *reply = (kt_reply)KT_REPLY;
}

/* -- asking -------------------------------------------------------------------------------------------------------- */

kt_client *kt_open(const char *brokers, double timeout_s)
{
    kt_client *client = calloc(1, sizeof *client);
    char *list = strdup(brokers), *rest_of_list = NULL;
    if (!client || !list)
        abort();
    client->context = zmq_ctx_new();
    client->timeout_s = timeout_s;
    for (char *one = strtok_r(list, ", ", &rest_of_list); one && client->count < BROKERS;
         one = strtok_r(NULL, ", ", &rest_of_list)) {
        char address[512];
        snprintf(address, sizeof address, "%s%s", strstr(one, "://") ? "" : "tcp://", one);
        client->brokers[client->count++] = strdup(address);
    }
    free(list);
    return client;
}

bool kt_use_keys(kt_client *client, const char *server_key, const char *public_key, const char *secret_key)
{
    const char *const keys[] = {server_key, public_key, secret_key};
    client->keyed = true;
    bool good = zmq_has("curve");
    for (int i = 0; good && i < 3; i++)
        good = keys[i] && strlen(keys[i]) == 40 && zmq_z85_decode(client->keys[i], keys[i]);
    return good;
}

static void leave(kt_client *client)
{
    if (client->socket)
        zmq_close(client->socket);
    client->socket = NULL;
}

void kt_close(kt_client *client)
{
    leave(client);
    zmq_ctx_term(client->context);
    for (size_t i = 0; i < client->count; i++)
        free(client->brokers[i]);
    free(client);
}

static bool reach(kt_client *client)
{
    if (client->socket || !client->count)
        return client->socket;
    int beat_ms = 1000, dead_ms = (int)(PATIENCE_S * 1000), linger_ms = 0;
    client->socket = zmq_socket(client->context, ZMQ_DEALER);
    zmq_setsockopt(client->socket, ZMQ_LINGER, &linger_ms, sizeof linger_ms);
    zmq_setsockopt(client->socket, ZMQ_HEARTBEAT_IVL, &beat_ms, sizeof beat_ms);
    zmq_setsockopt(client->socket, ZMQ_HEARTBEAT_TIMEOUT, &dead_ms, sizeof dead_ms);
    zmq_setsockopt(client->socket, ZMQ_HEARTBEAT_TTL, &dead_ms, sizeof dead_ms);
    for (int i = 0; client->keyed && i < 3; i++)
        if (zmq_setsockopt(client->socket, key_options[i], client->keys[i], sizeof client->keys[i]))
            return false; /* never in the clear instead */
    return !zmq_connect(client->socket, client->brokers[client->current % client->count]);
}

static void send_one(kt_client *client, const fields *f, uint64_t rid)
{
    msgpack_sbuffer whole;
    msgpack_packer p;
    msgpack_sbuffer_init(&whole);
    msgpack_packer_init(&p, &whole, msgpack_sbuffer_write);
    msgpack_pack_map(&p, f->count + 1);
    pack_text(&p, "rid");
    msgpack_pack_uint64(&p, rid);
    msgpack_sbuffer_write(&whole, f->bytes.data, f->bytes.size);
    zmq_send(client->socket, whole.data, whole.size, ZMQ_DONTWAIT); /* what does not leave is sent again */
    msgpack_sbuffer_destroy(&whole);
}

/* Take one message; true if there was one in time. A reply goes to its request. */
static bool receive(kt_client *client, double seconds, request *requests, size_t first, size_t last)
{
    zmq_pollitem_t item = {.socket = client->socket, .events = ZMQ_POLLIN};
    if (zmq_poll(&item, 1, (long)(fmax(seconds, 0) * 1000) + 1) <= 0)
        return false;
    zmq_msg_t message;
    zmq_msg_init(&message);
    kt_reply reply = KT_REPLY;
    if (zmq_msg_recv(&message, client->socket, 0) >= 0) {
        kt_status status = kt_read_reply(zmq_msg_data(&message), zmq_msg_size(&message), &reply);
        const msgpack_object *rid = kt_field(&reply.fields, "rid");
        for (size_t i = first; rid && rid->type == MSGPACK_OBJECT_POSITIVE_INTEGER && i < last; i++)
            if (requests[i].rid == rid->via.u64 && !requests[i].answered) {
                kt_reply_free(requests[i].reply);
                *requests[i].reply = reply;
                requests[i].status = status;
                requests[i].answered = status == KT_OK || (status == KT_REFUSED && !reply.error.retryable);
                requests[i].rid = 0;
                reply = (kt_reply)KT_REPLY;
                break;
            }
    }
    kt_reply_free(&reply);
    zmq_msg_close(&message);
    return true;
}

/* Send to the current broker what is unanswered, and read until all has a reply, or the broker counts as lost. */
static bool round_of(kt_client *client, request *requests, size_t count, double may_take_s, double end)
{
    request ping;
    begin_request(&ping, NULL, "ping");
    bool pinged = false, alive = reach(client);
    double heard = now(), until = fmin(end, heard + may_take_s + PATIENCE_S);
    for (size_t first = 0, sent = 0; alive && first < count;) {
        for (; sent < count && sent - first < UNDER_WAY; sent++)
            if (!requests[sent].answered)
                send_one(client, &requests[sent].fields, requests[sent].rid = ++client->last_rid);
        if (receive(client, fmin(until, heard + PATIENCE_S) - now(), requests, first, sent)) {
            heard = now();
            pinged = false;
            if (!may_take_s)
                until = fmin(end, heard + PATIENCE_S);
        } else if (now() >= until || pinged) {
            alive = false;
        } else if (now() >= heard + PATIENCE_S) { /* it owes an answer that may take longer: is it there? */
            send_one(client, &ping.fields, 0);
            pinged = true;
            heard = now();
        }
        while (first < sent && !requests[first].rid)
            first++;
    }
    msgpack_sbuffer_destroy(&ping.fields.bytes);
    return alive;
}

/* Ask until a broker answers each for good; returns the status of the first. */
static kt_status ask(kt_client *client, request *requests, size_t count, double may_take_s)
{
    const double deadline = now() + client->timeout_s + may_take_s;
    for (double pause = 0.1;; pause = fmin(2 * pause, 2)) {
        bool alive = round_of(client, requests, count, may_take_s, deadline), complete = true;
        double after = pause * (0.5 + (double)rand() / RAND_MAX);
        for (size_t i = 0; i < count; i++)
            if (!requests[i].answered) {
                complete = false;
                if (requests[i].status == KT_REFUSED)
                    after = fmax(after, requests[i].reply->error.retry_after_s);
            }
        if (complete || now() + after >= deadline)
            break;
        if (!alive)
            leave(client);
        client->current += !alive;
        rest(after);
    }
    for (size_t i = 0; i < count; i++)
        msgpack_sbuffer_destroy(&requests[i].fields.bytes);
    return requests[0].status;
}

/* -- the ops ------------------------------------------------------------------------------------------------------- */

kt_status kt_ping(kt_client *client, kt_reply *reply)
{
    request r;
    begin_request(&r, reply, "ping");
    return ask(client, &r, 1, 0);
}

kt_status kt_submit(kt_client *client, kt_task *task, kt_reply *reply)
{
    kt_status status;
    kt_submit_each(client, task, 1, reply, &status);
    return status;
}

void kt_submit_each(kt_client *client, kt_task *tasks, size_t count, kt_reply *replies, kt_status *statuses)
{
    request *requests = calloc(count, sizeof *requests);
    if (!requests)
        abort();
    for (size_t i = 0; i < count; i++) {
        fields *f = begin_request(&requests[i], &replies[i], "submit");
        put(f, "task");
        pack_task(f, &tasks[i]);
    }
    ask(client, requests, count, 0);
    for (size_t i = 0; i < count; i++)
        statuses[i] = requests[i].status;
    free(requests);
}

kt_status kt_submit_many(kt_client *client, kt_task *tasks, size_t count, kt_reply *reply)
{
    request r;
    fields *f = begin_request(&r, reply, "submit");
    msgpack_pack_array(put(f, "tasks"), count);
    for (size_t i = 0; i < count; i++)
        pack_task(f, &tasks[i]);
    return ask(client, &r, 1, 0);
}

static kt_status about(kt_client *client, const char *op, const char *id, kt_reply *reply)
{
    request r;
    put_text(begin_request(&r, reply, op), "id", id);
    return ask(client, &r, 1, 0);
}

kt_status kt_get(kt_client *client, const char *id, kt_reply *reply)
{
    return about(client, "get", id, reply);
}

kt_status kt_cancel(kt_client *client, const char *id, kt_reply *reply)
{
    return about(client, "cancel", id, reply);
}

kt_status kt_wait(kt_client *client, const char *id, double timeout_s, kt_reply *reply)
{
    const double deadline = now() + timeout_s;
    for (;;) {
        double page_s = fmax(fmin(deadline - now(), PAGE_S), 0);
        request r;
        fields *f = begin_request(&r, reply, "wait");
        put_text(f, "id", id);
        msgpack_pack_double(put(f, "timeout_s"), page_s);
        kt_status status = ask(client, &r, 1, page_s);
        if (status != KT_OK || !truth(kt_field(&reply->fields, "pending")))
            return status;
        if (now() >= deadline)
            return KT_PENDING;
    }
}
