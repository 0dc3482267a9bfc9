# frozen_string_literal: true

# The matrix test's hand on this client: a command for each line of standard input, an answer for each on standard
# output, both msgpack in hex.
require_relative "kingtask"

$stdout.sync = true
client = brokers = nil

exchange = lambda do |frames|
  context = ZMQ::Context.new
  socket = context.socket(ZMQ::DEALER)
  socket.setsockopt(ZMQ::LINGER, 0)
  socket.connect("tcp://#{brokers.first}")
  socket.send_strings(frames)
  socket.recv_strings(received = [])
  socket.close
  context.terminate
  received.map(&:b)
end

carry_out = lambda do |command|
  case command["do"]
  when "open"
    client&.close
    brokers = command["brokers"]
    client = Kingtask::Client.new(brokers, timeout: command["timeout_s"], keys: command["keys"]&.transform_keys(&:to_sym))
    nil
  when "ping" then client.ping
  when "submit" then client.submit(command["task"])
  when "submit_many" then client.submit_many(command["tasks"])
  when "pipeline" then client.submit_each(command["tasks"])
  when "get" then client.get(command["id"])
  when "wait" then client.wait(command["id"], timeout: command["timeout_s"])
  when "cancel" then client.cancel(command["id"])
  when "read" then Kingtask.read_reply(command["message"])
  when "exchange" then exchange.call(command["frames"])
  else raise ArgumentError, "no such command"
  end
end

answer = lambda do |command|
  { "ok" => carry_out.call(command) }
rescue Kingtask::Refused => e
  error = { "code" => e.code, "message" => e.message, "retryable" => e.retryable?, "stored" => e.stored,
            "field" => e.field, "retry_after_s" => e.retry_after }
  { "kind" => "refused", "error" => error }
rescue Kingtask::Pending => e
  { "kind" => "pending", "error" => e.message }
rescue ArgumentError => e
  { "kind" => "usage", "error" => e.message }
rescue Kingtask::NoAnswer => e
  { "kind" => "no_answer", "error" => e.message }
end

$stdin.each_line(chomp: true) do |line|
  command = MessagePack.unpack([line].pack("H*"))
  puts MessagePack.pack(answer.call(command)).unpack1("H*")
end
