package kingtask;

import java.util.Map;

/** A broker's error reply. */
public final class Refused extends KingtaskException {
    private static final long serialVersionUID = 1L;

    /** One of the protocol's; one that is not known is treated by {@code retryable} and {@code stored}. */
    public final String code;

    /** The same request may succeed later. */
    public final boolean retryable;

    /** "no", or "unknown": it may have been stored, so send the same id again, or look. */
    public final String stored;

    /** The place in the request, or null. */
    public final String field;

    /** How long to wait before sending again, or 0. */
    public final double retryAfterSeconds;

    public Refused(Map<String, Object> error) {
        super((String) error.get("message"));
        code = (String) error.get("code");
        retryable = Boolean.TRUE.equals(error.get("retryable"));
        stored = (String) error.getOrDefault("stored", "no");
        field = (String) error.get("field");
        retryAfterSeconds = error.get("retry_after_s") instanceof Number number ? number.doubleValue() : 0;
    }
}
