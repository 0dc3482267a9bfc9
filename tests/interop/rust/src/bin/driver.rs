//! The matrix test's hand on this client: a command for each line of standard input, an answer for each on standard
//! output, both msgpack in hex.

use std::fmt::Write as _;
use std::io::stdin;
use std::time::Duration;

use kingtask::{Client, Error, Task, field, read_reply};
use rmpv::Value;
use zeromq::{DealerSocket, Socket, SocketRecv, SocketSend, ZmqMessage};

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn texts(value: &Value) -> Vec<String> {
    items(value).iter().filter_map(text).collect()
}

fn seconds(value: &Value) -> Option<Duration> {
    value.as_f64().map(Duration::from_secs_f64)
}

fn task(map: &Value) -> Task {
    let env = field(map, "env").as_map().cloned().unwrap_or_default();
    Task {
        id: text(field(map, "id")).map(|id| id.parse().expect("a UUID")),
        name: text(field(map, "name")).unwrap_or_default(),
        args: texts(field(map, "args")),
        start_at: field(map, "start_at").as_f64(),
        delay: seconds(field(map, "delay_s")),
        retry: items(field(map, "retry")).iter().filter_map(seconds).collect(),
        queue: text(field(map, "queue")),
        priority: field(map, "priority").as_u64().and_then(|priority| priority.try_into().ok()),
        stdin: field(map, "stdin").as_slice().unwrap_or_default().to_vec(),
        env: env.iter().filter_map(|(name, value)| Some((text(name)?, text(value)?))).collect(),
        tags: texts(field(map, "tags")),
        ..Task::default()
    }
}

async fn exchange(broker: &str, frames: &[Value]) -> Value {
    let mut socket = DealerSocket::new();
    socket.connect(&format!("tcp://{broker}")).await.expect("a broker");
    let mut frames = frames.iter().map(|frame| frame.as_slice().unwrap_or_default().to_vec());
    let mut message = ZmqMessage::from(frames.next().expect("a frame"));
    frames.for_each(|frame| message.push_back(frame.into()));
    socket.send(message).await.expect("sent");
    let received = socket.recv().await.expect("a reply").into_vec();
    Value::Array(received.iter().map(|frame| Value::Binary(frame.to_vec())).collect())
}

async fn carry_out(client: &mut Option<Client>, brokers: &mut Vec<String>, command: &Value) -> Result<Value, Error> {
    let id = field(command, "id").as_str().unwrap_or_default();
    let limit = seconds(field(command, "timeout_s")).unwrap_or_default();
    let tasks: Vec<_> = items(field(command, "tasks")).iter().map(task).collect();
    match (field(command, "do").as_str().unwrap_or_default(), client) {
        ("open", client) => {
            *brokers = texts(field(command, "brokers"));
            *client = Some(Client::new(&*brokers, limit));
            Ok(Value::Nil)
        }
        ("read", _) => read_reply(field(command, "message").as_slice().unwrap_or_default()),
        ("exchange", _) => Ok(exchange(&brokers[0], items(field(command, "frames"))).await),
        ("ping", Some(client)) => client.ping().await,
        ("submit", Some(client)) => client.submit(&task(field(command, "task"))).await,
        ("submit_many", Some(client)) => client.submit_many(&tasks).await.map(Value::Array),
        ("pipeline", Some(client)) => {
            client.submit_each(&tasks).await.into_iter().collect::<Result<_, _>>().map(Value::Array)
        }
        ("get", Some(client)) => client.get(id).await,
        ("wait", Some(client)) => client.wait(id, limit).await,
        ("cancel", Some(client)) => client.cancel(id).await.map(Value::from),
        (unknown, _) => panic!("no such command, or no client: {unknown}"),
    }
}

fn answer(result: Result<Value, Error>) -> Value {
    let (kind, error) = match result {
        Ok(value) => return Value::Map(vec![("ok".into(), value)]),
        Err(Error::NoAnswer) => ("no_answer", Value::Nil),
        Err(Error::Pending(task)) => ("pending", task),
        Err(Error::Refused(refused)) => {
            let stored = if refused.stored_unknown { "unknown" } else { "no" };
            let fields = [
                ("code", refused.code.into()),
                ("message", refused.message.into()),
                ("retryable", refused.retryable.into()),
                ("stored", stored.into()),
                ("field", refused.field.map_or(Value::Nil, Value::from)),
                ("retry_after_s", refused.retry_after.map_or(Value::Nil, |after| after.as_secs_f64().into())),
            ];
            ("refused", Value::Map(fields.into_iter().map(|(name, value)| (name.into(), value)).collect()))
        }
    };
    Value::Map(vec![("kind".into(), kind.into()), ("error".into(), error)])
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let (mut client, mut brokers) = (None, Vec::new());
    for line in stdin().lines().map_while(Result::ok) {
        let digit = |hex: &u8| (*hex as char).to_digit(16).expect("hex") as u8;
        let packed: Vec<_> = line.as_bytes().chunks(2).map(|pair| digit(&pair[0]) << 4 | digit(&pair[1])).collect();
        let command = rmpv::decode::read_value(&mut &packed[..]).expect("msgpack");
        let mut out = Vec::new();
        let value = answer(carry_out(&mut client, &mut brokers, &command).await);
        rmpv::encode::write_value(&mut out, &value).expect("memory takes all that is written");
        let hex = out.iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        println!("{hex}");
    }
}
