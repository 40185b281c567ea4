//! Names of the metrics, as the `metrics` facade sees them, each with its kind, unit and description. All but those
//! of memory, pools and the system are labelled `capability` and `model`. Counters and histograms are by name, so
//! they go on when a model is replaced; gauges are of the current model alone.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

macro_rules! metrics {
    ($($kind:ident $name:ident = $text:literal, $unit:ident: $about:literal;)*) => {
        $(
            #[doc = concat!($about, " A ", stringify!($kind), ".")]
            pub const $name: &str = $text;
        )*

        /// Tells the recorder of the process the unit and the description of each metric.
        pub(crate) fn describe_all() {
            $(metrics!(@describe $kind $name $unit $about);)*
        }

        /// Every name.
        #[cfg(test)]
        pub(crate) const ALL: &[&str] = &[$($name),*];
    };
    (@describe counter $name:ident $unit:ident $about:literal) => { describe_counter!($name, Unit::$unit, $about) };
    (@describe gauge $name:ident $unit:ident $about:literal) => { describe_gauge!($name, Unit::$unit, $about) };
    (@describe histogram $name:ident $unit:ident $about:literal) => { describe_histogram!($name, Unit::$unit, $about) };
}

metrics! {
    counter REQUESTS = "model_actors_requests_total", Count: "Requests that were accepted or refused.";
    counter SUCCEEDED = "model_actors_requests_succeeded_total", Count: "Requests that succeeded.";
    counter ERRORS = "model_actors_errors_total", Count: "Requests that ended with an error, by `reason`.";
    counter CANCELLED = "model_actors_requests_cancelled_total", Count: "Requests that their caller gave up.";
    counter TIMEOUTS = "model_actors_timeouts_total", Count: "Requests that ran out of time, by `phase`.";
    counter QUEUE_FULL = "model_actors_queue_full_total", Count: "Requests refused because the queue was full, by `lane`.";
    counter RERUNS = "model_actors_reruns_total", Count: "Requests that were run again after a failure or the loss of a worker.";
    gauge QUEUE_DEPTH = "model_actors_queue_depth", Count: "Requests waiting in the pool.";
    histogram BACKPRESSURE_WAIT = "model_actors_backpressure_wait_seconds", Seconds: "Wait for a slot of a full queue.";
    histogram QUEUE_WAIT = "model_actors_queue_wait_seconds", Seconds: "Time from a request's call to its first run.";
    histogram TIME_TO_FIRST_OUTPUT = "model_actors_time_to_first_output_seconds", Seconds: "Time from a request's call to its first chunk, or to its output if it has none.";
    histogram TIME_BETWEEN_OUTPUTS = "model_actors_time_between_outputs_seconds", Seconds: "Time between two chunks of a request.";
    histogram REQUEST_TIME = "model_actors_request_seconds", Seconds: "Time from the call to the output, of requests that succeeded.";
    counter INPUT_TOKENS = "model_actors_input_tokens_total", Count: "Tokens of the prompts of requests that succeeded, where the capability counts them.";
    counter CACHED_TOKENS = "model_actors_cached_tokens_total", Count: "Tokens of those prompts that were found in a prefix cache, and not read.";
    counter OUTPUT_TOKENS = "model_actors_output_tokens_total", Count: "Tokens generated for requests that succeeded, where the capability counts them.";
    histogram RUN_TIME = "model_actors_run_seconds", Seconds: "One run of a batch.";
    histogram BATCH_SIZE = "model_actors_batch_size", Count: "Requests of a batch.";
    histogram LOAD_TIME = "model_actors_load_seconds", Seconds: "One load of a model's weights that succeeded.";
    gauge WORKERS = "model_actors_workers", Count: "Workers that are loaded, idle or busy.";
    counter WORKERS_SPAWNED = "model_actors_workers_spawned_total", Count: "Workers started.";
    counter START_FAILURES = "model_actors_start_failures_total", Count: "Workers that could not be started.";
    counter CRASHES = "model_actors_worker_crashes_total", Count: "Workers that crashed.";
    counter RESTARTS = "model_actors_worker_restarts_total", Count: "Workers started in place of lost ones.";
    counter STALLS = "model_actors_worker_stalls_total", Count: "Workers given up because they made no progress.";
    gauge STUCK_THREADS = "model_actors_stuck_threads", Count: "Threads of given-up workers that have not ended.";
    counter WORKERS_EVICTED = "model_actors_workers_evicted_total", Count: "Workers that were told to go, by `reason`.";
    gauge BREAKER_STATE = "model_actors_breaker_state", Count: "State of the model's breaker: 0 closed, 1 half open, 2 open.";
    counter BREAKER_OPENED = "model_actors_breaker_opened_total", Count: "Times that the model's breaker opened.";
    counter OUT_OF_MEMORY = "model_actors_out_of_memory_total", Count: "Runs that ran out of memory.";
    counter POISON = "model_actors_poison_total", Count: "Requests that were given up because workers died running them.";
    gauge BYTES = "model_actors_memory_bytes", Bytes: "Bytes charged, by `device`.";
    gauge CACHED_BYTES = "model_actors_cached_bytes", Bytes: "The part of these that caches hold, by `device`.";
    counter POOL_RESTARTS = "model_actors_pool_restarts_total", Count: "Pools that failed and were started again, by `capability`.";
    counter SYSTEM_FAILURES = "model_actors_system_failures_total", Count: "Systems that failed for good.";
}

#[cfg(test)]
mod tests {
    use super::ALL;

    /// The conventions of Prometheus: one prefix, base units at the end of the name, `_total` for counters alone.
    #[test]
    fn names_are_unique_and_conventional() {
        let mut names = ALL.to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
        assert!(names.iter().all(|name| name.starts_with("model_actors_")));
        // A line of the table each: its kind, its name in the code and its name.
        let lines =
            include_str!("metric.rs").lines().filter_map(|line| line.trim().split_once(" = \"model_actors_"));
        let kinds: Vec<_> = lines.filter_map(|(kind, rest)| Some((kind, rest.split_once('"')?.0))).collect();
        assert!(kinds.len() >= ALL.len());
        for (kind, name) in kinds {
            assert_eq!(kind.starts_with("counter "), name.ends_with("_total"), "{kind} = {name}");
        }
        assert!(names.iter().all(|name| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')));
    }
}
