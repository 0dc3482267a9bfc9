# frozen_string_literal: true

# Runs the executable "example" with two numbers in two seconds, retried twice if it fails, and prints its output.
require_relative "kingtask"

client = Kingtask::Client.new
outcome = client.submit({ "name" => "example", "args" => %w[12 45], "delay_s" => 2, "retry" => [5, 8] })
task = client.wait(outcome["id"], timeout: 30)
puts "#{task["state"]}: #{task["stdout"]}"
client.close
