import java.io.IOException;
import java.io.OutputStream;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;

/** As task.sh. */
final class Task {
    public static void main(String[] arguments) throws IOException {
        PrintStream out = new PrintStream(System.out, false, StandardCharsets.UTF_8);
        for (String argument : arguments) {
            out.printf("<%s>%n", argument);
        }
        out.printf("%d%n%s%n", System.in.transferTo(OutputStream.nullOutputStream()), System.getenv("TASK_WORD"));
        out.flush();
        System.exit(Integer.parseInt(System.getenv().getOrDefault("TASK_STATUS", "0")));
    }
}
