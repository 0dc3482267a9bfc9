# frozen_string_literal: true

require "ffi-rzmq"
require "msgpack"
require "securerandom"

# A client for version 1 of the kingtask protocol. Tasks, records and other replies are hashes with the protocol's names
# as strings.
#
# Every call blocks, and asks one broker after the other until one answers for good or the client's time is over. What is
# sent again is sent unchanged, so it has one effect: every task gets its id here. A client belongs to one thread.
module Kingtask
  class Error < StandardError; end

  # No broker answered in time. A submit may have been stored: send it again with the same id.
  class NoAnswer < Error; end

  # The task, as it stands in `task`, had not ended within the time given. It goes on.
  class Pending < Error
    attr_reader :task

    def initialize(task)
      super("task #{task["id"]} has not ended yet")
      @task = task
    end
  end

  # A broker's error reply.
  class Refused < Error
    attr_reader :code, :field, :retry_after, :stored

    def initialize(error)
      super(error["message"])
      @code, @field, @retry_after = error.values_at("code", "field", "retry_after_s")
      @retryable = error["retryable"]
      @stored = error.fetch("stored", "no") # or "unknown": send the same id again, or look
    end

    # The same request may succeed later.
    def retryable? = @retryable
  end

  # The fields of a reply's bytes.
  def self.read_reply(message)
    reply = MessagePack.unpack(message)
    reply["ok"] ? reply : raise(Refused, reply["error"])
  end

  class Client
    PATIENCE = 3 # s of silence, then the broker counts as lost
    PAGE = 60 # s of one wait request; longer ones are asked again
    UNDER_WAY = 500 # requests; a broker drops the replies that nobody reads
    KEYS = { server: ZMQ::CURVE_SERVERKEY, public: ZMQ::CURVE_PUBLICKEY, secret: ZMQ::CURVE_SECRETKEY }.freeze

    # `brokers` such as "127.0.0.1:9595"; `timeout` is the seconds that a call may take in all. For brokers that ask for
    # keys, `keys` has theirs as `server:` and your own pair as `public:` and `secret:`, in Z85.
    def initialize(brokers = ENV.fetch("KINGTASK_BROKER", "127.0.0.1:9595").split(","), timeout: 10, keys: nil)
      @brokers = brokers.map { |broker| broker.include?("://") ? broker : "tcp://#{broker}" }
      @timeout = timeout
      @current = @last_rid = 0
      @context = ZMQ::Context.new
      @keys = keys
      make.close # which raises if the keys are none
    end

    def close
      @socket&.close
      @context.terminate
    end

    def ping = ask("ping")

    # Returns "id", "outcome" and "ack" when the task is stored.
    def submit(task) = ask("submit", { "task" => with_id(task) })

    # Up to 1,000 in one message: an outcome each, in order. A bad one does not hinder the others.
    def submit_many(tasks) = ask("submit", { "tasks" => tasks.map { |task| with_id(task) } })["outcomes"]

    # Any number, a message each, many under way at a time. Raises the first refusal; what was accepted runs.
    def submit_each(tasks)
      ask_all(tasks.map { |task| Request.new("submit", { "task" => with_id(task) }) }, 0).map(&:result)
    end

    def get(id) = ask("get", { "id" => id })["task"]

    # Returns the record when the task has ended, however it did.
    def wait(id, timeout: Float::INFINITY)
      deadline = now + timeout
      loop do
        page = (deadline - now).clamp(0, PAGE)
        reply = ask("wait", { "id" => id, "timeout_s" => page }, may_take: page)
        return reply["task"] unless reply["pending"]
        raise Pending, reply["task"] if now >= deadline
      end
    end

    # Returns "cancelled", or "cancelling" while the task runs.
    def cancel(id) = ask("cancel", { "id" => id })["outcome"]

    private

    # One request of a call, and what came of it.
    class Request
      def initialize(op, fields = {})
        @fields = { "v" => 1, "op" => op, **fields }
        @error = NoAnswer.new("no broker answered in time")
      end

      def pack(rid) = MessagePack.pack({ **@fields, "rid" => rid })

      def take(message)
        @reply = Kingtask.read_reply(message)
        @error = nil
      rescue Refused => e
        @error = e
      end

      def result = @reply || raise(@error)
      def open? = @error.is_a?(NoAnswer) || (@error.is_a?(Refused) && @error.retryable?)
      def retry_after = (@error.retry_after if @error.is_a?(Refused)) || 0
    end
    private_constant :Request

    def ask(operation, fields = {}, may_take: 0)
      ask_all([Request.new(operation, fields)], may_take).first.result
    end

    # Ask until a broker answers each for good; `may_take` is how long that may take if all is well.
    def ask_all(requests, may_take)
      deadline = now + @timeout + may_take
      pause = 0.1
      loop do
        leave unless round(requests.select(&:open?), may_take, deadline)
        open = requests.select(&:open?)
        rest = [pause * rand(0.5..1.5), *open.map(&:retry_after)].max
        return requests if open.empty? || now + rest >= deadline

        sleep(rest)
        pause = [2 * pause, 2].min
      end
    end

    # Send all to the current broker and read until each has a reply; false if the broker counts as lost.
    def round(requests, may_take, deadline)
      reach
      to_send = requests.dup
      unanswered = {}
      heard = now
      ends = [deadline, heard + may_take + PATIENCE].min
      pinged = false
      until to_send.empty? && unanswered.empty?
        while unanswered.size < UNDER_WAY && (request = to_send.shift)
          unanswered[@last_rid += 1] = request
          @socket.send_string(request.pack(@last_rid), ZMQ::DONTWAIT)
        end
        if (message = receive([ends, heard + PATIENCE].min - now))
          heard = now
          pinged = false
          ends = [deadline, heard + PATIENCE].min if may_take.zero?
          unanswered.delete(MessagePack.unpack(message)["rid"])&.take(message)
        elsif now >= ends || pinged
          return false
        elsif now >= heard + PATIENCE # it owes an answer that may take longer: is it there?
          @socket.send_string(Request.new("ping").pack(0), ZMQ::DONTWAIT)
          pinged = true
          heard = now
        end
      end
      true
    end

    def receive(seconds)
      @socket.setsockopt(ZMQ::RCVTIMEO, ([seconds, 0].max * 1000).to_i + 1)
      message = +""
      message if ZMQ::Util.resultcode_ok?(@socket.recv_string(message))
    end

    def reach
      return if @socket

      @socket = make
      @socket.connect(@brokers[@current % @brokers.size])
    end

    def make
      socket = @context.socket(ZMQ::DEALER)
      socket.setsockopt(ZMQ::LINGER, 0)
      bad, = KEYS.find { |name, option| @keys && socket.setsockopt(option, @keys.fetch(name)).negative? }
      return socket unless bad

      socket.close
      raise ArgumentError, "keys, #{bad}: expected 40 characters (Z85), and a libzmq that can encrypt"
    end

    def leave
      @socket.close
      @socket = nil
      @current += 1
    end

    def with_id(task) = { "id" => SecureRandom.uuid, **task }

    def now = Process.clock_gettime(Process::CLOCK_MONOTONIC)
  end
end
