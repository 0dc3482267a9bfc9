"""`kingtask requeue`: run tasks that have ended once more, as new tasks."""
