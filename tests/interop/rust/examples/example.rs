//! Runs the executable "example" with two numbers in two seconds, retried twice if it fails, and prints its output.

use std::time::Duration;

use kingtask::{Client, Error, Task, field};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let brokers = std::env::var("KINGTASK_BROKER").unwrap_or("127.0.0.1:9595".into());
    let mut client = Client::new(brokers.split(','), Duration::from_secs(10));
    let task = Task {
        name: "example".into(),
        args: vec!["12".into(), "45".into()],
        delay: Some(Duration::from_secs(2)),
        retry: vec![Duration::from_secs(5), Duration::from_secs(8)],
        ..Task::default()
    };
    let outcome = client.submit(&task).await?;
    let id = field(&outcome, "id").as_str().unwrap_or_default();
    let record = client.wait(id, Duration::from_secs(30)).await?;
    let stdout = field(&record, "stdout").as_slice().unwrap_or_default();
    print!("{}: {}", field(&record, "state").as_str().unwrap_or_default(), String::from_utf8_lossy(stdout));
    Ok(())
}
