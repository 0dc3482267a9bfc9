// Package kingtask is a client for version 1 of the kingtask protocol.
//
// A Client may be used by any number of goroutines: all their requests travel over one connection to one broker. When
// that broker is lost or does not answer, they are sent again, unchanged, to the next; whatever is sent twice has one
// effect, because every task gets its id here. How long a call may take in all is up to its context.
package kingtask

import (
	"bytes"
	"context"
	crand "crypto/rand"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/vmihailenco/msgpack/v5"
)

const (
	patience = 3 * time.Second  // of silence, then the broker counts as lost
	onePage  = 60 * time.Second // one wait request; longer ones are asked again
	underWay = 500              // requests; a broker drops the replies that nobody reads
)

// ErrPending says that the task had not ended when the context did. It goes on.
var ErrPending = errors.New("kingtask: the task has not ended yet")

// NoAnswer says that no broker answered in time. A submit may have been stored: send it again with the same id.
type NoAnswer struct{ Cause error }

func (e *NoAnswer) Error() string {
	return fmt.Sprintf("kingtask: no broker answered in time: %v", e.Cause)
}
func (e *NoAnswer) Unwrap() error { return e.Cause }

// Refused is a broker's error reply.
type Refused struct {
	Code       string  `msgpack:"code"`
	Message    string  `msgpack:"message"`
	Retryable  bool    `msgpack:"retryable"` // the same may succeed later
	Stored     string  `msgpack:"stored"`    // "no", or "unknown": send the same id again, or look
	Field      string  `msgpack:"field,omitempty"`
	RetryAfter float64 `msgpack:"retry_after_s,omitempty"`
}

func (e *Refused) Error() string { return "kingtask: " + e.Code + ": " + e.Message }

// Task is what to run. Only Name is required; instants are epoch seconds.
type Task struct {
	ID        string            `msgpack:"id,omitempty"` // chosen by Submit if empty
	Name      string            `msgpack:"name"`
	Args      []string          `msgpack:"args,omitempty"`
	StartAt   float64           `msgpack:"start_at,omitempty"`
	Delay     float64           `msgpack:"delay_s,omitempty"`
	Retry     []float64         `msgpack:"retry,omitempty"` // seconds to wait after the first failure, the second, …
	Queue     string            `msgpack:"queue,omitempty"`
	Priority  *int              `msgpack:"priority,omitempty"` // 0 to 9; nil is 5
	TimeLimit float64           `msgpack:"time_limit_s,omitempty"`
	Stdin     []byte            `msgpack:"stdin,omitempty"`
	Env       map[string]string `msgpack:"env,omitempty"`
	Keep      float64           `msgpack:"keep_result_s,omitempty"`
	ExpiresAt float64           `msgpack:"expires_at,omitempty"`
	Stderr    string            `msgpack:"stderr,omitempty"`
	OnLost    string            `msgpack:"on_lost,omitempty"`
	Tags      []string          `msgpack:"tags,omitempty"`
}

// Outcome says what became of one submitted task: "created", "exists" (as good), or "error" with Error.
type Outcome struct {
	ID      string   `msgpack:"id"`
	Outcome string   `msgpack:"outcome"`
	Error   *Refused `msgpack:"error,omitempty"`
}

// Record is a task as it stands; Stdout and Stderr are there once it has ended.
type Record struct {
	ID         string    `msgpack:"id"`
	Name       string    `msgpack:"name"`
	Queue      string    `msgpack:"queue"`
	Priority   int       `msgpack:"priority"`
	State      string    `msgpack:"state"` // scheduled, ready, running, succeeded, failed, cancelled, expired
	CreatedAt  float64   `msgpack:"created_at"`
	DueAt      float64   `msgpack:"due_at"`
	Args       []string  `msgpack:"args"`
	Tags       []string  `msgpack:"tags"`
	Origin     string    `msgpack:"origin"`
	Reason     string    `msgpack:"reason"`
	Cancelling bool      `msgpack:"cancelling"`
	Worker     string    `msgpack:"worker"`
	Attempt    int       `msgpack:"attempt"`
	StartedAt  float64   `msgpack:"started_at"`
	FinishedAt float64   `msgpack:"finished_at"`
	Stdout     []byte    `msgpack:"stdout"`
	Stderr     []byte    `msgpack:"stderr"`
	StdoutSize int       `msgpack:"stdout_size"` // bytes written; more than len(Stdout): it was cut
	StderrSize int       `msgpack:"stderr_size"`
	Attempts   []Attempt `msgpack:"attempts"`
}

// Attempt is one that has ended; an empty Reason means success.
type Attempt struct {
	Number     int     `msgpack:"number"`
	Worker     string  `msgpack:"worker"`
	StartedAt  float64 `msgpack:"started_at"`
	EndedAt    float64 `msgpack:"ended_at"`
	Reason     string  `msgpack:"reason"`
	ExitCode   *int    `msgpack:"exit_code"`
	Signal     *int    `msgpack:"signal"`
	Message    string  `msgpack:"message"`
	StderrTail []byte  `msgpack:"stderr_tail"`
}

// Pong is the answer to Ping.
type Pong struct {
	Server    string             `msgpack:"server"`
	Version   string             `msgpack:"version"`
	Protocols []int              `msgpack:"protocols"`
	Broker    string             `msgpack:"broker"`
	Ready     bool               `msgpack:"ready"`
	Ack       string             `msgpack:"ack"`
	Now       float64            `msgpack:"now"`
	Limits    map[string]float64 `msgpack:"limits"`
}

// Client speaks to several brokers on one Redis, one at a time.
type Client struct {
	brokers []string
	slots   chan struct{} // a token for each request that may be under way
	turn    chan struct{} // whoever holds its token may look at what follows
	current int
	link    *link
}

// New makes a client of brokers such as "127.0.0.1:9595" or "tcp://host:9595". Nothing is connected yet.
func New(brokers ...string) *Client {
	c := &Client{slots: make(chan struct{}, underWay), turn: make(chan struct{}, 1)}
	for _, broker := range brokers {
		if !strings.Contains(broker, "://") {
			broker = "tcp://" + broker
		}
		c.brokers = append(c.brokers, broker)
	}
	return c
}

// Close ends the connection. Calls under way connect again.
func (c *Client) Close() {
	c.turn <- struct{}{}
	defer func() { <-c.turn }()
	if c.link != nil {
		c.link.fail(errClosed)
		c.link = nil
	}
}

func (c *Client) Ping(ctx context.Context) (Pong, error) {
	return call[Pong](ctx, c, "ping", nil, 0)
}

// Submit returns when the task is stored.
func (c *Client) Submit(ctx context.Context, task Task) (Outcome, error) {
	return call[Outcome](ctx, c, "submit", map[string]any{"task": withID(task)}, 0)
}

// SubmitMany submits up to 1,000 tasks at once: an outcome each, in order. A bad one does not hinder the others.
func (c *Client) SubmitMany(ctx context.Context, tasks []Task) ([]Outcome, error) {
	named := make([]Task, len(tasks))
	for i, task := range tasks {
		named[i] = withID(task)
	}
	reply, err := call[struct {
		Outcomes []Outcome `msgpack:"outcomes"`
	}](ctx, c, "submit", map[string]any{"tasks": named}, 0)
	return reply.Outcomes, err
}

type taskReply struct {
	Pending bool   `msgpack:"pending"`
	Task    Record `msgpack:"task"`
}

func (c *Client) Get(ctx context.Context, id string) (Record, error) {
	reply, err := call[taskReply](ctx, c, "get", map[string]any{"id": id}, 0)
	return reply.Task, err
}

// Wait returns the record when the task has ended, however it did, or ErrPending when timeout has passed.
func (c *Client) Wait(ctx context.Context, id string, timeout time.Duration) (Record, error) {
	deadline := time.Now().Add(timeout)
	for {
		page := max(min(time.Until(deadline), onePage), 0)
		reply, err := call[taskReply](ctx, c, "wait", map[string]any{"id": id, "timeout_s": page.Seconds()}, page)
		if err != nil || !reply.Pending {
			return reply.Task, err
		}
		if time.Until(deadline) <= 0 {
			return reply.Task, ErrPending
		}
	}
}

// Cancel returns "cancelled", or "cancelling" while the task runs.
func (c *Client) Cancel(ctx context.Context, id string) (string, error) {
	reply, err := call[Outcome](ctx, c, "cancel", map[string]any{"id": id}, 0)
	return reply.Outcome, err
}

// call asks until a broker answers for good; mayTake is how long that may take if all is well.
func call[T any](ctx context.Context, c *Client, op string, fields map[string]any, mayTake time.Duration) (T, error) {
	var result T
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-ctx.Done():
		return result, &NoAnswer{ctx.Err()}
	}
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		reply, err := c.try(ctx, op, fields, mayTake)
		if err == nil {
			err = ReadReply(reply, &result)
		}
		var refused *Refused
		isRefused := errors.As(err, &refused)
		if err == nil || isRefused && !refused.Retryable {
			return result, err
		}
		rest := time.Duration((0.5 + rand.Float64()) * float64(pause))
		if isRefused {
			rest = max(rest, time.Duration(refused.RetryAfter*float64(time.Second)))
		}
		select {
		case <-time.After(rest):
		case <-ctx.Done():
			if isRefused {
				return result, refused
			}
			return result, &NoAnswer{err}
		}
	}
}

// try asks the current broker once, and chooses the next one if nothing comes.
func (c *Client) try(ctx context.Context, op string, fields map[string]any, mayTake time.Duration) ([]byte, error) {
	select {
	case c.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if c.link == nil || c.link.failed() {
		link, err := connect(ctx, c.brokers[c.current%len(c.brokers)])
		if err != nil {
			c.current++
			<-c.turn
			return nil, err
		}
		c.link = link
	}
	link := c.link
	<-c.turn
	reply, err := link.ask(ctx, op, fields, mayTake)
	if err != nil && ctx.Err() == nil {
		c.turn <- struct{}{}
		if c.link == link {
			link.fail(err)
			c.link, c.current = nil, c.current+1
		}
		<-c.turn
	}
	return reply, err
}

// ReadReply stores the fields of a reply in result, or returns the broker's error as *Refused.
func ReadReply(message []byte, result any) error {
	var head struct {
		OK    bool     `msgpack:"ok"`
		Error *Refused `msgpack:"error"`
	}
	if err := msgpack.Unmarshal(message, &head); err != nil {
		return err
	}
	if head.OK {
		return msgpack.Unmarshal(message, result)
	}
	if head.Error == nil {
		return errors.New("kingtask: the reply is not one of protocol 1")
	}
	return head.Error
}

func pack(rid uint64, op string, fields map[string]any) ([]byte, error) {
	request := map[string]any{"v": 1, "rid": rid, "op": op}
	for name, value := range fields {
		request[name] = value
	}
	var buffer bytes.Buffer
	encoder := msgpack.NewEncoder(&buffer)
	encoder.UseCompactInts(true)
	err := encoder.Encode(request)
	return buffer.Bytes(), err
}

func withID(task Task) Task {
	if task.ID == "" {
		var b [16]byte
		_, _ = crand.Read(b[:])
		b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80 // version 4
		task.ID = fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
	}
	return task
}
