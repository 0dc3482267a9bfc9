package kingtask;

import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.time.Duration;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.zeromq.SocketType;
import org.zeromq.ZContext;
import org.zeromq.ZMQ;
import org.zeromq.ZMsg;

/**
 * The matrix test's hand on this client: a command for each line of standard input, an answer for each on standard
 * output, both msgpack in hex.
 */
final class Driver {
    private final ZContext context = new ZContext();
    private Client client;
    private List<String> brokers;

    @SuppressWarnings("unchecked")
    private Object carryOut(Map<String, Object> command) throws KingtaskException {
        String id = (String) command.get("id");
        var task = (Map<String, Object>) command.get("task");
        var tasks = (List<Map<String, Object>>) command.get("tasks");
        switch ((String) command.get("do")) {
            case "open":
                if (client != null) {
                    client.close();
                }
                brokers = (List<String>) command.get("brokers");
                var keys = (Map<String, String>) command.get("keys");
                client = keys == null
                        ? new Client(brokers, timeout(command))
                        : new Client(
                                brokers,
                                timeout(command),
                                new Keys(keys.get("server"), keys.get("public"), keys.get("secret")));
                return null;
            case "ping":
                return client.ping();
            case "submit":
                return client.submit(task);
            case "submit_many":
                return client.submitMany(tasks);
            case "pipeline":
                return client.submitEach(tasks);
            case "get":
                return client.get(id);
            case "wait":
                return client.waitFor(id, timeout(command));
            case "cancel":
                return client.cancel(id);
            case "read":
                return Client.readReply((byte[]) command.get("message"));
            case "exchange":
                return exchange((List<byte[]>) command.get("frames"));
            default:
                throw new IllegalArgumentException("no such command");
        }
    }

    private static Duration timeout(Map<String, Object> command) {
        return Duration.ofMillis((long) (1e3 * ((Number) command.get("timeout_s")).doubleValue()));
    }

    private List<byte[]> exchange(List<byte[]> frames) {
        try (ZMQ.Socket socket = context.createSocket(SocketType.DEALER)) {
            socket.setHandshakeIvl(500); // as in Client
            socket.connect("tcp://" + brokers.get(0));
            ZMsg message = new ZMsg();
            frames.forEach(message::add);
            message.send(socket);
            List<byte[]> received = new ArrayList<>();
            ZMsg.recvMsg(socket).forEach(frame -> received.add(frame.getData()));
            return received;
        }
    }

    private Map<String, Object> answer(Map<String, Object> command) {
        Map<String, Object> answer = new LinkedHashMap<>();
        try {
            answer.put("ok", carryOut(command));
        } catch (Refused refused) {
            Map<String, Object> error = new LinkedHashMap<>();
            error.put("code", refused.code);
            error.put("message", refused.getMessage());
            error.put("retryable", refused.retryable);
            error.put("stored", refused.stored);
            error.put("field", refused.field);
            error.put("retry_after_s", refused.retryAfterSeconds);
            answer.put("kind", "refused");
            answer.put("error", error);
        } catch (IllegalArgumentException error) {
            answer.put("kind", "usage");
            answer.put("error", error.getMessage());
        } catch (KingtaskException error) {
            answer.put("kind", error instanceof KingtaskException.Pending ? "pending" : "no_answer");
            answer.put("error", error.getMessage());
        }
        return answer;
    }

    public static void main(String[] arguments) throws IOException {
        Driver driver = new Driver();
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            var command = Wire.unpack(HexFormat.of().parseHex(line));
            System.out.println(HexFormat.of().formatHex(Wire.pack(driver.answer(command))));
        }
    }
}
