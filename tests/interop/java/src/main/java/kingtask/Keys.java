package kingtask;

import java.util.regex.Pattern;

/**
 * For brokers that ask for keys (CURVE), in Z85.
 *
 * @param server the brokers' public key
 * @param publicKey one's own, which the brokers know
 * @param secretKey that belongs to it
 */
public record Keys(String server, String publicKey, String secretKey) {
    private static final Pattern Z85 = Pattern.compile("[0-9a-zA-Z.:+=^!/*?&<>()\\[\\]{}@%$#-]{40}");

    public Keys {
        for (String key : new String[] {server, publicKey, secretKey}) { // JeroMQ takes any character for one
            if (!Z85.matcher(key).matches()) {
                throw new IllegalArgumentException("a key of kingtask has 40 characters (Z85), not " + key.length());
            }
        }
    }

    @Override
    public String toString() {
        return "Keys of " + publicKey;
    }
}
