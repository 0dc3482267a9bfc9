package kingtask;

import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.core.type.TypeReference;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.util.Map;
import org.msgpack.jackson.dataformat.MessagePackFactory;

/** Msgpack and back: maps, lists, strings, bytes, numbers, booleans and null. */
final class Wire {
    private static final ObjectMapper MSGPACK = new ObjectMapper(new MessagePackFactory());
    private static final TypeReference<Map<String, Object>> MAP = new TypeReference<>() {};

    private Wire() {}

    static byte[] pack(Map<String, ?> message) {
        try {
            return MSGPACK.writeValueAsBytes(message);
        } catch (JsonProcessingException error) {
            throw new IllegalArgumentException("not for the wire", error);
        }
    }

    static Map<String, Object> unpack(byte[] message) {
        try {
            return MSGPACK.readValue(message, MAP);
        } catch (IOException error) {
            throw new IllegalArgumentException("not a message of kingtask", error);
        }
    }
}
