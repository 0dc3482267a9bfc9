/* Runs the executable "example" with two numbers in two seconds, retried twice if it fails, and prints its output. */
#include "kingtask.h"

#include <stdio.h>
#include <stdlib.h>

int main(void)
{
    const char *brokers = getenv("KINGTASK_BROKER");
    kt_client *client = kt_open(brokers ? brokers : "127.0.0.1:9595", 10);
    kt_task task = KT_TASK;
    task.name = "example";
    task.args = (const char *const[]){"12", "45"};
    task.args_count = 2;
    task.delay_s = 2;
    task.retry = (const double[]){5, 8};
    task.retry_count = 2;

    kt_reply reply = KT_REPLY;
    kt_status status = kt_submit(client, &task, &reply);
    if (status == KT_OK)
        status = kt_wait(client, task.id, 30, &reply);
    if (status == KT_OK) {
        const msgpack_object *record = kt_field(&reply.fields, "task");
        const msgpack_object *state = kt_field(record, "state"), *out = kt_field(record, "stdout");
        printf("%.*s: ", (int)state->via.str.size, state->via.str.ptr);
        if (out)
            fwrite(out->via.bin.ptr, 1, out->via.bin.size, stdout);
    } else {
        fprintf(stderr, "%s %s\n", status == KT_REFUSED ? reply.error.code : "no answer", reply.error.message);
    }
    kt_reply_free(&reply);
    kt_close(client);
    return status != KT_OK;
}
