// The matrix test's hand on this client: a command for each line of standard input, an answer for each on standard
// output, both msgpack in hex.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/go-zeromq/zmq4"
	"github.com/vmihailenco/msgpack/v5"

	"kingtask"
)

type command struct {
	Do      string          `msgpack:"do"`
	Brokers []string        `msgpack:"brokers"`
	Timeout float64         `msgpack:"timeout_s"`
	ID      string          `msgpack:"id"`
	Task    kingtask.Task   `msgpack:"task"`
	Tasks   []kingtask.Task `msgpack:"tasks"`
	Frames  [][]byte        `msgpack:"frames"`
	Message []byte          `msgpack:"message"`
}

type driver struct {
	client  *kingtask.Client
	brokers []string
	timeout time.Duration
}

func (d *driver) do(c command) (any, error) {
	limit := d.timeout
	if c.Do == "wait" {
		limit += seconds(c.Timeout)
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	switch c.Do {
	case "open":
		d.client, d.brokers, d.timeout = kingtask.New(c.Brokers...), c.Brokers, seconds(c.Timeout)
		return nil, nil
	case "ping":
		return d.client.Ping(ctx)
	case "submit":
		return d.client.Submit(ctx, c.Task)
	case "submit_many":
		return d.client.SubmitMany(ctx, c.Tasks)
	case "pipeline":
		return d.pipeline(ctx, c.Tasks)
	case "get":
		return d.client.Get(ctx, c.ID)
	case "wait":
		return d.client.Wait(ctx, c.ID, seconds(c.Timeout))
	case "cancel":
		return d.client.Cancel(ctx, c.ID)
	case "read":
		var fields map[string]any
		return &fields, kingtask.ReadReply(c.Message, &fields)
	case "exchange":
		return d.exchange(ctx, c.Frames)
	}
	return nil, fmt.Errorf("no such command: %s", c.Do)
}

func (d *driver) pipeline(ctx context.Context, tasks []kingtask.Task) ([]kingtask.Outcome, error) {
	outcomes, failures := make([]kingtask.Outcome, len(tasks)), make([]error, len(tasks))
	var group sync.WaitGroup
	for i, task := range tasks {
		group.Go(func() { outcomes[i], failures[i] = d.client.Submit(ctx, task) })
	}
	group.Wait()
	return outcomes, errors.Join(failures...)
}

func (d *driver) exchange(ctx context.Context, frames [][]byte) ([][]byte, error) {
	socket := zmq4.NewDealer(ctx)
	defer socket.Close()
	if err := socket.Dial("tcp://" + d.brokers[0]); err != nil {
		return nil, err
	}
	if err := socket.SendMulti(zmq4.NewMsgFrom(frames...)); err != nil {
		return nil, err
	}
	reply, err := socket.Recv()
	return reply.Frames, err
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

func answer(value any, err error) map[string]any {
	if err == nil {
		return map[string]any{"ok": value}
	}
	var refused *kingtask.Refused
	if errors.As(err, &refused) {
		return map[string]any{"error": refused, "kind": "refused"}
	}
	var unanswered *kingtask.NoAnswer
	if errors.As(err, &unanswered) {
		return map[string]any{"error": err.Error(), "kind": "no_answer"}
	}
	if errors.Is(err, kingtask.ErrPending) {
		return map[string]any{"error": err.Error(), "kind": "pending"}
	}
	return map[string]any{"error": err.Error(), "kind": "broken"}
}

func main() {
	var d driver
	lines := bufio.NewReader(os.Stdin)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return
		}
		packed := make([]byte, hex.DecodedLen(len(bytes.TrimSpace(line))))
		if _, err = hex.Decode(packed, bytes.TrimSpace(line)); err != nil {
			panic(err)
		}
		var c command
		if err = msgpack.Unmarshal(packed, &c); err != nil {
			panic(err)
		}
		reply, err := msgpack.Marshal(answer(d.do(c)))
		if err != nil {
			panic(err)
		}
		fmt.Println(hex.EncodeToString(reply))
	}
}
