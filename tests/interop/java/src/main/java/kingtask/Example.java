package kingtask;

import java.time.Duration;
import java.util.List;
import java.util.Map;

/** Runs the executable "example" with two numbers in two seconds, retried twice if it fails, and prints its output. */
final class Example {
    public static void main(String[] arguments) throws KingtaskException {
        String brokers = System.getenv().getOrDefault("KINGTASK_BROKER", "127.0.0.1:9595");
        try (Client client = new Client(List.of(brokers.split(",")), Duration.ofSeconds(10))) {
            var outcome = client.submit(
                    Map.of("name", "example", "args", List.of("12", "45"), "delay_s", 2, "retry", List.of(5, 8)));
            var task = client.waitFor((String) outcome.get("id"), Duration.ofSeconds(30));
            System.out.print(task.get("state") + ": " + new String((byte[]) task.getOrDefault("stdout", new byte[0])));
        }
    }
}
