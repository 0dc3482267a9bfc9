//! A client for version 1 of the kingtask protocol.
//!
//! Every call asks one broker after the other until one answers for good or the client's time is over. What is sent
//! again is sent unchanged, so it has one effect: every task gets its id here. Records and other replies are
//! [`rmpv::Value`] maps with the protocol's names; [`field`] looks into them.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use rmpv::Value;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use uuid::Uuid;
use zeromq::{DealerSocket, Socket, SocketRecv, SocketSend, ZmqMessage};

/// Of silence; then the broker counts as lost.
const PATIENCE: Duration = Duration::from_secs(3);
/// Of one wait request; longer ones are asked again.
const PAGE: Duration = Duration::from_secs(60);
/// Requests under way: a broker drops the replies that nobody reads.
const UNDER_WAY: usize = 500;

/// What went wrong.
#[derive(Debug, Clone)]
pub enum Error {
    /// The broker said no.
    Refused(Refused),
    /// No broker answered in time. A submit may have been stored: send it again with the same id.
    NoAnswer,
    /// The task, as it stands here, had not ended within the time given. It goes on.
    Pending(Value),
}

/// A broker's error reply.
#[derive(Debug, Clone)]
pub struct Refused {
    /// One of the protocol's; one that is not known is treated by the next two.
    pub code: String,
    /// The same request may succeed later.
    pub retryable: bool,
    /// It may have been stored: send the same id again, or look. Otherwise nothing was.
    pub stored_unknown: bool,
    pub message: String,
    /// The place in the request.
    pub field: Option<String>,
    pub retry_after: Option<Duration>,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Refused(refused) => write!(f, "{}: {}", refused.code, refused.message),
            Error::NoAnswer => write!(f, "no broker answered in time"),
            Error::Pending(_) => write!(f, "the task has not ended yet"),
        }
    }
}

impl std::error::Error for Error {}

/// What to run: `Task { name: "example".into(), ..Task::default() }`. Instants are epoch seconds.
#[derive(Debug, Clone, Default)]
pub struct Task {
    /// Chosen by the client if there is none.
    pub id: Option<Uuid>,
    pub name: String,
    pub args: Vec<String>,
    pub start_at: Option<f64>,
    pub delay: Option<Duration>,
    /// How long to wait after the first failure, the second, …
    pub retry: Vec<Duration>,
    pub queue: Option<String>,
    pub priority: Option<u8>,
    pub time_limit: Option<Duration>,
    pub stdin: Vec<u8>,
    pub env: HashMap<String, String>,
    pub keep_result: Option<Duration>,
    pub expires_at: Option<f64>,
    pub stderr: Option<String>,
    pub on_lost: Option<String>,
    pub tags: Vec<String>,
}

impl Task {
    fn to_value(&self) -> Value {
        let seconds = |duration: Duration| Value::from(duration.as_secs_f64());
        let texts = |texts: &[String]| Value::Array(texts.iter().map(|text| text.as_str().into()).collect());
        let list = |values: Vec<Value>| (!values.is_empty()).then_some(Value::Array(values));
        let env = map(self.env.iter().map(|(name, value)| (name.as_str(), value.as_str().into())));
        let mut fields = map([
            ("id", self.id.unwrap_or_else(Uuid::new_v4).to_string().into()),
            ("name", self.name.as_str().into()),
            ("args", texts(&self.args)),
            ("tags", texts(&self.tags)),
        ]);
        let optional = [
            ("start_at", self.start_at.map(Value::from)),
            ("delay_s", self.delay.map(seconds)),
            ("retry", list(self.retry.iter().copied().map(seconds).collect())),
            ("queue", self.queue.as_deref().map(Value::from)),
            ("priority", self.priority.map(Value::from)),
            ("time_limit_s", self.time_limit.map(seconds)),
            ("stdin", (!self.stdin.is_empty()).then(|| Value::Binary(self.stdin.clone()))),
            ("keep_result_s", self.keep_result.map(seconds)),
            ("expires_at", self.expires_at.map(Value::from)),
            ("stderr", self.stderr.as_deref().map(Value::from)),
            ("on_lost", self.on_lost.as_deref().map(Value::from)),
            ("env", (!env.is_empty()).then_some(Value::Map(env))),
        ];
        fields.extend(optional.into_iter().filter_map(|(name, value)| Some((name.into(), value?))));
        Value::Map(fields)
    }
}

type Fields = Vec<(Value, Value)>;

fn map<'a>(fields: impl IntoIterator<Item = (&'a str, Value)>) -> Fields {
    fields.into_iter().map(|(name, value)| (name.into(), value)).collect()
}

/// A field of a map; nil if it is not there.
pub fn field<'a>(map: &'a Value, name: &str) -> &'a Value {
    let fields = map.as_map().map(Vec::as_slice).unwrap_or_default();
    fields.iter().find(|(key, _)| key.as_str() == Some(name)).map_or(&Value::Nil, |(_, value)| value)
}

/// A reply's bytes as a map, or the broker's error.
pub fn read_reply(mut message: &[u8]) -> Result<Value, Error> {
    let reply = rmpv::decode::read_value(&mut message).map_err(|_| Error::NoAnswer)?;
    if field(&reply, "ok").as_bool() == Some(true) {
        return Ok(reply);
    }
    let error = field(&reply, "error");
    let text = |name| field(error, name).as_str().map(str::to_owned);
    Err(Error::Refused(Refused {
        code: text("code").ok_or(Error::NoAnswer)?,
        retryable: field(error, "retryable").as_bool().unwrap_or(false),
        stored_unknown: text("stored").as_deref() == Some("unknown"),
        message: text("message").unwrap_or_default(),
        field: text("field"),
        retry_after: field(error, "retry_after_s").as_f64().map(Duration::from_secs_f64),
    }))
}

/// One request of a call, and what came of it.
struct Request {
    fields: Fields,
    reply: Result<Value, Error>,
}

impl Request {
    fn new(op: &str, fields: Fields) -> Self {
        let fields = [map([("v", 1.into()), ("op", op.into())]), fields].concat();
        Self { fields, reply: Err(Error::NoAnswer) }
    }

    fn pack(&self, rid: u64) -> ZmqMessage {
        let mut packed = Vec::new();
        let message = Value::Map([self.fields.clone(), map([("rid", rid.into())])].concat());
        rmpv::encode::write_value(&mut packed, &message).expect("memory takes all that is written");
        packed.into()
    }

    fn open(&self) -> bool {
        match &self.reply {
            Ok(_) => false,
            Err(Error::Refused(refused)) => refused.retryable,
            Err(_) => true,
        }
    }
}

/// Speaks to several brokers on one Redis, one at a time.
pub struct Client {
    brokers: Vec<String>,
    timeout: Duration,
    current: usize,
    last_rid: u64,
    /// Of the current broker; none if it has to be made.
    socket: Option<DealerSocket>,
}

impl Client {
    /// `brokers` such as "127.0.0.1:9595"; `timeout` is what a call may take in all. Nothing is connected yet.
    pub fn new<S: AsRef<str>>(brokers: impl IntoIterator<Item = S>, timeout: Duration) -> Self {
        let address = |broker: S| match broker.as_ref() {
            whole if whole.contains("://") => whole.to_owned(),
            short => format!("tcp://{short}"),
        };
        let brokers: Vec<_> = brokers.into_iter().map(address).collect();
        assert!(!brokers.is_empty(), "a client needs a broker");
        Self { brokers, timeout, current: 0, last_rid: 0, socket: None }
    }

    pub async fn ping(&mut self) -> Result<Value, Error> {
        self.ask(Request::new("ping", vec![]), Duration::ZERO).await
    }

    /// Returns `id`, `outcome` and `ack` when the task is stored.
    pub async fn submit(&mut self, task: &Task) -> Result<Value, Error> {
        self.ask(Request::new("submit", map([("task", task.to_value())])), Duration::ZERO).await
    }

    /// Up to 1,000 in one message: an outcome each, in order. A bad one does not hinder the others.
    pub async fn submit_many(&mut self, tasks: &[Task]) -> Result<Vec<Value>, Error> {
        let tasks = Value::Array(tasks.iter().map(Task::to_value).collect());
        let reply = self.ask(Request::new("submit", map([("tasks", tasks)])), Duration::ZERO).await?;
        Ok(field(&reply, "outcomes").as_array().cloned().unwrap_or_default())
    }

    /// Any number, a message each, many under way at a time.
    pub async fn submit_each(&mut self, tasks: &[Task]) -> Vec<Result<Value, Error>> {
        let one = |task: &Task| Request::new("submit", map([("task", task.to_value())]));
        self.ask_all(tasks.iter().map(one).collect(), Duration::ZERO).await
    }

    pub async fn get(&mut self, id: &str) -> Result<Value, Error> {
        let reply = self.ask(Request::new("get", map([("id", id.into())])), Duration::ZERO).await?;
        Ok(field(&reply, "task").clone())
    }

    /// Returns the record when the task has ended, however it did.
    pub async fn wait(&mut self, id: &str, timeout: Duration) -> Result<Value, Error> {
        let deadline = Instant::now() + timeout;
        loop {
            let page = PAGE.min(deadline.saturating_duration_since(Instant::now()));
            let fields = map([("id", id.into()), ("timeout_s", page.as_secs_f64().into())]);
            let reply = self.ask(Request::new("wait", fields), page).await?;
            let task = field(&reply, "task").clone();
            if field(&reply, "pending").as_bool() != Some(true) {
                return Ok(task);
            }
            if Instant::now() >= deadline {
                return Err(Error::Pending(task));
            }
        }
    }

    /// Returns "cancelled", or "cancelling" while the task runs.
    pub async fn cancel(&mut self, id: &str) -> Result<String, Error> {
        let reply = self.ask(Request::new("cancel", map([("id", id.into())])), Duration::ZERO).await?;
        Ok(field(&reply, "outcome").as_str().unwrap_or_default().to_owned())
    }

    async fn ask(&mut self, request: Request, may_take: Duration) -> Result<Value, Error> {
        self.ask_all(vec![request], may_take).await.remove(0)
    }

    /// Ask until a broker answers each for good; `may_take` is how long that may take if all is well.
    async fn ask_all(&mut self, mut requests: Vec<Request>, may_take: Duration) -> Vec<Result<Value, Error>> {
        let deadline = Instant::now() + self.timeout + may_take;
        let mut pause = Duration::from_millis(100);
        loop {
            let mut open: Vec<_> = requests.iter_mut().filter(|request| request.open()).collect();
            // It fails if the broker counts as lost: what is unanswered goes to the next.
            if self.round(&mut open, may_take, deadline).await.is_err() {
                self.socket = None;
                self.current += 1;
            }
            let mut rest = pause.mul_f64(0.5 + fastrand::f64());
            for request in &open {
                if let Err(Error::Refused(Refused { retry_after: Some(after), .. })) = request.reply {
                    rest = rest.max(after);
                }
            }
            if !open.iter().any(|request| request.open()) || Instant::now() + rest >= deadline {
                return requests.into_iter().map(|request| request.reply).collect();
            }
            sleep(rest).await;
            pause = (2 * pause).min(Duration::from_secs(2));
        }
    }

    /// Send all to the current broker and read until each has a reply.
    async fn round(&mut self, requests: &mut [&mut Request], may_take: Duration, end: Instant) -> Result<(), Error> {
        let lost = |_| Error::NoAnswer;
        let mut until = end.min(Instant::now() + may_take + PATIENCE);
        let mut socket = match self.socket.take() {
            Some(socket) => socket,
            None => {
                let mut socket = DealerSocket::new();
                let broker = &self.brokers[self.current % self.brokers.len()];
                timeout_at(until, socket.connect(broker)).await.map_err(|_| Error::NoAnswer)?.map_err(lost)?;
                socket
            }
        };
        let mut unanswered = HashMap::new();
        let (mut sent, mut pinged) = (0, false);
        while sent < requests.len() || !unanswered.is_empty() {
            while sent < requests.len() && unanswered.len() < UNDER_WAY {
                self.last_rid += 1;
                unanswered.insert(self.last_rid, sent);
                socket.send(requests[sent].pack(self.last_rid)).await.map_err(lost)?;
                sent += 1;
            }
            let patience = PATIENCE.min(until.saturating_duration_since(Instant::now()));
            if let Ok(received) = timeout(patience, socket.recv()).await {
                pinged = false;
                if may_take.is_zero() {
                    until = end.min(Instant::now() + PATIENCE);
                }
                let message = received.map_err(lost)?.into_vec().pop().unwrap_or_default();
                let rid = rmpv::decode::read_value(&mut &message[..]).ok().and_then(|m| field(&m, "rid").as_u64());
                if let Some(number) = rid.and_then(|rid| unanswered.remove(&rid)) {
                    requests[number].reply = read_reply(&message);
                }
            } else if Instant::now() >= until || pinged {
                return Err(Error::NoAnswer);
            } else {
                // It owes an answer that may take longer: is it there?
                socket.send(Request::new("ping", vec![]).pack(0)).await.map_err(lost)?;
                pinged = true;
            }
        }
        self.socket = Some(socket);
        Ok(())
    }
}
