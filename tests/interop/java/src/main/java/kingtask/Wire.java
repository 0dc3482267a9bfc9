package kingtask;

import java.io.IOException;
import java.math.BigInteger;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.msgpack.core.MessageBufferPacker;
import org.msgpack.core.MessagePack;
import org.msgpack.core.MessageUnpacker;

/** Msgpack and back: maps, lists, strings, bytes, numbers, booleans and null. */
final class Wire {
    private Wire() {}

    static byte[] pack(Object value) {
        try (MessageBufferPacker packer = MessagePack.newDefaultBufferPacker()) {
            pack(packer, value);
            return packer.toByteArray();
        } catch (IOException impossible) {
            throw new IllegalStateException(impossible);
        }
    }

    private static void pack(MessageBufferPacker packer, Object value) throws IOException {
        if (value == null) {
            packer.packNil();
        } else if (value instanceof Map<?, ?> map) {
            packer.packMapHeader(map.size());
            for (Map.Entry<?, ?> entry : map.entrySet()) {
                pack(packer, entry.getKey());
                pack(packer, entry.getValue());
            }
        } else if (value instanceof List<?> list) {
            packer.packArrayHeader(list.size());
            for (Object item : list) {
                pack(packer, item);
            }
        } else if (value instanceof String text) {
            packer.packString(text);
        } else if (value instanceof byte[] bytes) {
            packer.packBinaryHeader(bytes.length);
            packer.writePayload(bytes);
        } else if (value instanceof Boolean truth) {
            packer.packBoolean(truth);
        } else if (value instanceof BigInteger integer) {
            packer.packBigInteger(integer);
        } else if (value instanceof Double || value instanceof Float) {
            packer.packDouble(((Number) value).doubleValue());
        } else if (value instanceof Number number) {
            packer.packLong(number.longValue());
        } else {
            throw new IllegalArgumentException("not for the wire: " + value.getClass());
        }
    }

    /** A message that is a map. */
    @SuppressWarnings("unchecked")
    static Map<String, Object> unpack(byte[] message) {
        try (MessageUnpacker unpacker = MessagePack.newDefaultUnpacker(message)) {
            return (Map<String, Object>) unpack(unpacker);
        } catch (IOException | ClassCastException error) {
            throw new IllegalArgumentException("not a message of kingtask", error);
        }
    }

    private static Object unpack(MessageUnpacker unpacker) throws IOException {
        switch (unpacker.getNextFormat().getValueType()) {
            case MAP: {
                Map<String, Object> map = new LinkedHashMap<>();
                for (int left = unpacker.unpackMapHeader(); left > 0; left--) {
                    map.put(unpacker.unpackString(), unpack(unpacker));
                }
                return map;
            }
            case ARRAY: {
                List<Object> list = new ArrayList<>();
                for (int left = unpacker.unpackArrayHeader(); left > 0; left--) {
                    list.add(unpack(unpacker));
                }
                return list;
            }
            case STRING:
                return unpacker.unpackString();
            case BINARY:
                return unpacker.readPayload(unpacker.unpackBinaryHeader());
            case BOOLEAN:
                return unpacker.unpackBoolean();
            case FLOAT:
                return unpacker.unpackDouble();
            case INTEGER: {
                BigInteger integer = unpacker.unpackBigInteger();
                return integer.bitLength() < 64 ? (Object) integer.longValue() : integer;
            }
            default:
                unpacker.skipValue();
                return null;
        }
    }
}
