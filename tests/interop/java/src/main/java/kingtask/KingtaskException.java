package kingtask;

/** The root of what a client throws. */
public class KingtaskException extends Exception {
    private static final long serialVersionUID = 1L;

    public KingtaskException(String message) {
        super(message);
    }

    /** No broker answered in time. A submit may have been stored: send it again with the same id. */
    public static final class NoAnswer extends KingtaskException {
        private static final long serialVersionUID = 1L;

        public NoAnswer() {
            super("no broker answered in time");
        }
    }

    /** The task had not ended within the time given. It goes on. */
    public static final class Pending extends KingtaskException {
        private static final long serialVersionUID = 1L;

        public Pending(String id) {
            super("task " + id + " has not ended yet");
        }
    }
}
