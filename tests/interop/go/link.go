package kingtask

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/go-zeromq/zmq4"
	"github.com/vmihailenco/msgpack/v5"
)

var (
	errClosed = errors.New("the client was closed")
	errSilent = errors.New("the broker is silent")
)

// link is a connection to one broker. It is used until it fails, and never again.
type link struct {
	socket zmq4.Socket
	lost   chan struct{} // closed when it has failed

	mu      sync.Mutex
	cause   error
	rid     uint64
	pending map[uint64]chan []byte // replies are awaited here, by rid
	heard   time.Time
}

// connect returns when the handshake is done. zmq4 sets no limit to that: one that takes too long is left to end alone.
func connect(ctx context.Context, broker string) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	socket := zmq4.NewDealer(context.Background(), zmq4.WithDialerTimeout(patience), zmq4.WithDialerMaxRetries(0))
	dialled := make(chan error, 1)
	go func() { dialled <- socket.Dial(broker) }()
	select {
	case err := <-dialled:
		if err != nil {
			return nil, errors.Join(err, socket.Close())
		}
	case <-ctx.Done():
		go func() {
			<-dialled
			_ = socket.Close()
		}()
		return nil, ctx.Err()
	}
	l := &link{socket: socket, lost: make(chan struct{}), pending: map[uint64]chan []byte{}, heard: time.Now()}
	go l.read()
	go l.watch()
	return l, nil
}

// ask sends a request and waits for its reply.
func (l *link) ask(ctx context.Context, op string, fields map[string]any, mayTake time.Duration) ([]byte, error) {
	answer := make(chan []byte, 1)
	l.mu.Lock()
	l.rid++
	rid := l.rid
	message, err := pack(rid, op, fields)
	if err == nil {
		if len(l.pending) == 0 {
			l.heard = time.Now() // silence counts from the first question
		}
		l.pending[rid] = answer
		err = l.socket.Send(zmq4.NewMsg(message))
	}
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		delete(l.pending, rid)
		l.mu.Unlock()
	}()
	if err != nil {
		return nil, err
	}
	timer := time.NewTimer(mayTake + patience)
	defer timer.Stop()
	select {
	case reply := <-answer:
		return reply, nil
	case <-l.lost:
		return nil, l.cause
	case <-timer.C:
		return nil, errSilent
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// read hands each reply to whoever waits for it.
func (l *link) read() {
	for {
		message, err := l.socket.Recv()
		if err != nil {
			l.fail(err)
			return
		}
		var head struct {
			Rid uint64 `msgpack:"rid"`
		}
		if len(message.Frames) != 1 || msgpack.Unmarshal(message.Frames[0], &head) != nil {
			continue
		}
		l.mu.Lock()
		l.heard = time.Now()
		if answer, waited := l.pending[head.Rid]; waited {
			answer <- message.Frames[0]
			delete(l.pending, head.Rid)
		}
		l.mu.Unlock()
	}
}

// watch asks a broker that owes replies whether it is there: one that hangs, or whose host has gone, says nothing.
func (l *link) watch() {
	ticker := time.NewTicker(patience / 2)
	defer ticker.Stop()
	for {
		select {
		case <-l.lost:
			return
		case <-ticker.C:
		}
		l.mu.Lock()
		silent := time.Since(l.heard)
		owes := len(l.pending) > 0
		if owes && silent > patience/2 {
			if ping, err := pack(0, "ping", nil); err == nil {
				_ = l.socket.Send(zmq4.NewMsg(ping))
			}
		}
		l.mu.Unlock()
		if owes && silent > patience+patience/2 {
			l.fail(errSilent)
		}
	}
}

func (l *link) fail(cause error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cause == nil {
		l.cause = cause
		close(l.lost)
		_ = l.socket.Close()
	}
}

func (l *link) failed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cause != nil
}
