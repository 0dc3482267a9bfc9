package kingtask;

import java.time.Duration;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.ThreadLocalRandom;
import org.zeromq.SocketType;
import org.zeromq.ZContext;
import org.zeromq.ZMQ;

/**
 * A client for version 1 of the kingtask protocol. Tasks, records and other replies are maps with the protocol's names.
 *
 * <p>Every call blocks, and asks one broker after the other until one answers for good or the client's time is over.
 * What is sent again is sent unchanged, so it has one effect: every task gets its id here. A client belongs to one
 * thread at a time.
 */
public final class Client implements AutoCloseable {
    private static final long PATIENCE_MS = 3_000; // of silence, then the broker counts as lost
    private static final long PAGE_MS = 60_000; // of one wait request; longer ones are asked again
    private static final int UNDER_WAY = 500; // requests; a broker drops the replies that nobody reads

    private final ZContext context = new ZContext();
    private final List<String> brokers;
    private final long timeoutMs;
    private final Keys keys; // or null
    private int current;
    private long lastRid;
    private ZMQ.Socket socket; // of the current broker; null if it has to be made

    /**
     * @param brokers such as "127.0.0.1:9595" or "tcp://host:9595"
     * @param timeout what a call may take in all
     */
    public Client(List<String> brokers, Duration timeout) {
        this(brokers, timeout, null);
    }

    /** For brokers that ask for keys. */
    public Client(List<String> brokers, Duration timeout, Keys keys) {
        this.keys = keys;
        this.brokers = brokers.stream().map(b -> b.contains("://") ? b : "tcp://" + b).toList();
        this.timeoutMs = timeout.toMillis();
        context.setLinger(0);
    }

    @Override
    public void close() {
        context.close();
    }

    public Map<String, Object> ping() throws KingtaskException {
        return ask(new Request("ping", Map.of()), 0);
    }

    /** Returns "id", "outcome" and "ack" when the task is stored. */
    public Map<String, Object> submit(Map<String, ?> task) throws KingtaskException {
        return ask(new Request("submit", Map.of("task", withId(task))), 0);
    }

    /** Up to 1,000 in one message: an outcome each, in order. A bad one does not hinder the others. */
    public List<Map<String, Object>> submitMany(List<? extends Map<String, ?>> tasks) throws KingtaskException {
        var named = tasks.stream().map(Client::withId).toList();
        return field(ask(new Request("submit", Map.of("tasks", named)), 0), "outcomes");
    }

    /** Any number, a message each, many under way at a time. Throws the first refusal; what was accepted runs. */
    public List<Map<String, Object>> submitEach(List<? extends Map<String, ?>> tasks) throws KingtaskException {
        var requests = tasks.stream().map(task -> new Request("submit", Map.of("task", withId(task)))).toList();
        ask(requests, 0);
        List<Map<String, Object>> outcomes = new ArrayList<>();
        for (Request request : requests) {
            outcomes.add(request.result());
        }
        return outcomes;
    }

    public Map<String, Object> get(String id) throws KingtaskException {
        return field(ask(new Request("get", Map.of("id", id)), 0), "task");
    }

    /** Returns the record when the task has ended, however it did. */
    public Map<String, Object> waitFor(String id, Duration timeout) throws KingtaskException {
        long deadline = nowMs() + timeout.toMillis();
        while (true) {
            long pageMs = Math.max(0, Math.min(PAGE_MS, deadline - nowMs()));
            var reply = ask(new Request("wait", Map.of("id", id, "timeout_s", pageMs / 1e3)), pageMs);
            if (!Boolean.TRUE.equals(reply.get("pending"))) {
                return field(reply, "task");
            }
            if (nowMs() >= deadline) {
                throw new KingtaskException.Pending(id);
            }
        }
    }

    /** Returns "cancelled", or "cancelling" while the task runs. */
    public String cancel(String id) throws KingtaskException {
        return field(ask(new Request("cancel", Map.of("id", id)), 0), "outcome");
    }

    /** The fields of a reply's bytes. */
    public static Map<String, Object> readReply(byte[] message) throws Refused {
        Map<String, Object> reply = Wire.unpack(message);
        if (Boolean.TRUE.equals(reply.get("ok"))) {
            return reply;
        }
        throw new Refused(field(reply, "error"));
    }

    private static final class Request {
        final Map<String, Object> message = new LinkedHashMap<>();
        Map<String, Object> reply;
        Refused refused;

        Request(String op, Map<String, ?> fields) {
            message.put("v", 1);
            message.put("rid", 0);
            message.put("op", op);
            message.putAll(fields);
        }

        void take(byte[] received) {
            try {
                reply = readReply(received);
                refused = null;
            } catch (Refused error) {
                refused = error;
            }
        }

        boolean open() {
            return reply == null && (refused == null || refused.retryable);
        }

        Map<String, Object> result() throws KingtaskException {
            if (reply != null) {
                return reply;
            }
            throw refused != null ? refused : new KingtaskException.NoAnswer();
        }
    }

    private Map<String, Object> ask(Request request, long mayTakeMs) throws KingtaskException {
        ask(List.of(request), mayTakeMs);
        return request.result();
    }

    /** Ask until a broker answers each for good; mayTakeMs is how long that may take if all is well. */
    private void ask(List<Request> requests, long mayTakeMs) {
        long deadline = nowMs() + timeoutMs + mayTakeMs;
        for (long pauseMs = 100; ; pauseMs = Math.min(2 * pauseMs, 2_000)) {
            var open = requests.stream().filter(Request::open).toList();
            if (!round(open, mayTakeMs, deadline)) {
                leave();
            }
            open = open.stream().filter(Request::open).toList();
            double restMs = pauseMs * ThreadLocalRandom.current().nextDouble(0.5, 1.5);
            for (Request request : open) {
                if (request.refused != null) {
                    restMs = Math.max(restMs, 1e3 * request.refused.retryAfterSeconds);
                }
            }
            if (open.isEmpty() || nowMs() + restMs >= deadline) {
                return;
            }
            ZMQ.msleep((long) restMs);
        }
    }

    /** Send all to the current broker and read until each has a reply; false if the broker counts as lost. */
    private boolean round(List<Request> requests, long mayTakeMs, long deadline) {
        Map<Long, Request> unanswered = new HashMap<>();
        var toSend = requests.iterator();
        long heard = nowMs();
        long until = Math.min(deadline, heard + mayTakeMs + PATIENCE_MS);
        boolean pinged = false;
        reach();
        while (toSend.hasNext() || !unanswered.isEmpty()) {
            while (toSend.hasNext() && unanswered.size() < UNDER_WAY) {
                Request request = toSend.next();
                request.message.put("rid", ++lastRid);
                unanswered.put(lastRid, request);
                socket.send(Wire.pack(request.message), ZMQ.DONTWAIT);
            }
            socket.setReceiveTimeOut((int) Math.max(0, Math.min(until, heard + PATIENCE_MS) - nowMs()) + 1);
            byte[] received = socket.recv();
            long now = nowMs();
            if (received != null) {
                heard = now;
                pinged = false;
                if (mayTakeMs == 0) {
                    until = Math.min(deadline, now + PATIENCE_MS);
                }
                if (Wire.unpack(received).get("rid") instanceof Number rid && unanswered.containsKey(rid.longValue())) {
                    unanswered.remove(rid.longValue()).take(received);
                }
            } else if (now >= until || pinged) {
                return false;
            } else if (now >= heard + PATIENCE_MS) { // it owes an answer that may take longer: is it there?
                socket.send(Wire.pack(new Request("ping", Map.of()).message), ZMQ.DONTWAIT);
                pinged = true;
                heard = now;
            }
        }
        return true;
    }

    private void reach() {
        if (socket == null) {
            socket = context.createSocket(SocketType.DEALER);
            // Once in a few dozen connections JeroMQ 0.6.0 never sends its greeting; it tries again after this time.
            socket.setHandshakeIvl(500);
            socket.setHeartbeatIvl(1_000);
            socket.setHeartbeatTimeout((int) PATIENCE_MS);
            socket.setHeartbeatTtl((int) PATIENCE_MS);
            if (keys != null) {
                socket.setCurveServerKey(keys.server().getBytes(ZMQ.CHARSET));
                socket.setCurvePublicKey(keys.publicKey().getBytes(ZMQ.CHARSET));
                socket.setCurveSecretKey(keys.secretKey().getBytes(ZMQ.CHARSET));
            }
            socket.connect(brokers.get(current % brokers.size()));
        }
    }

    private void leave() {
        socket.close();
        socket = null;
        current++;
    }

    private static Map<String, Object> withId(Map<String, ?> task) {
        Map<String, Object> named = new LinkedHashMap<>(task);
        named.putIfAbsent("id", UUID.randomUUID().toString());
        return named;
    }

    @SuppressWarnings("unchecked")
    private static <T> T field(Map<String, Object> reply, String name) {
        return (T) reply.get(name);
    }

    private static long nowMs() {
        return System.nanoTime() / 1_000_000;
    }
}
