//! Classes of errors, and their way through the actors.

use model_actors::{ErrorKind, Failure, FailureKind};

use super::*;

#[test]
fn what_may_mend_itself_is_retried_and_the_rest_is_not() {
    let stalled = Error::TransferStalled {
        repository: "a/b".into(),
        file: "config.json".into(),
        after: Duration::from_secs(1),
    };
    assert_eq!(Failure::from(stalled).kind, FailureKind::Failed);
    let missing = Error::MissingTensor { tensor: "x".into() };
    assert_eq!(Failure::from(missing).kind, FailureKind::Permanent);
    assert_eq!(Failure::from(Error::InvalidInput("no".into())).kind, FailureKind::InvalidInput);
    let memory = candle_core::Error::Msg("CUDA_ERROR_OUT_OF_MEMORY".into());
    assert_eq!(Failure::from(Error::from(memory)).kind, FailureKind::OutOfMemory);
}

fn failed_start(cause: Error) -> Error {
    let Failure { kind: failure, cause, .. } = cause.into();
    let (model, capability) = ("a/b".into(), "text_embedding".into());
    Error::from(model_actors::Error::SpawnFailed { model, capability, failure, cause })
}

#[test]
fn the_root_of_an_actor_error_is_the_loads_own() {
    let own = Error::RepositoryNotFound { repository: "a/b".into() };
    let error = failed_start(own.clone());
    assert!(matches!(error, Error::Actor(_)));
    assert_eq!((error.root(), error.kind()), (own, ErrorKind::NotFound));
    let limited = Error::RateLimited { retry_after: Some(Duration::from_secs(7)) };
    assert_eq!(failed_start(limited).kind().retry_after(), Some(Duration::from_secs(7)));
}

#[test]
fn an_input_error_keeps_its_type_through_the_actors() {
    let own = Error::PromptTooLong { prompt: 9, limit: 8, of: "the model's context has".into() };
    let Failure { cause, .. } = own.clone().into();
    assert_eq!(Error::from(model_actors::Error::InvalidInput { cause }), own);
    let words = model_actors::Error::InvalidInput { cause: "the request holds no texts".into() };
    assert_eq!(Error::from(words), Error::InvalidInput("the request holds no texts".into()));
}

#[test]
fn texts_of_a_file_are_cut_on_the_way_through_the_actors() {
    let long = |letters: usize| Error::UnsupportedArchitecture {
        found: "ä".repeat(letters),
        capability: "text to text".into(),
        supported: vec!["llama".into(); letters],
    };
    let Failure { cause, .. } = long(4 << 20).into();
    assert!(cause.message().len() < 5000, "{} bytes", cause.message().len());
    let Error::UnsupportedArchitecture { found, supported, .. } = Error::from(cause) else {
        panic!("its type")
    };
    assert!(found.starts_with("ää") && found.ends_with('…') && supported.len() == 200);
    let Failure { cause, .. } = long(8).into();
    assert_eq!(Error::from(cause), long(8));
}

#[test]
fn errors_survive_the_way_to_another_process() {
    let errors = [
        Error::NoSuchDirectory { path: "/no/such".into() },
        Error::UnsupportedArchitecture {
            found: "mamba".into(),
            capability: "text to text".into(),
            supported: vec!["llama".into(), "qwen2".into()],
        },
        Error::NotFinite { tensor: "x".into(), index: 3, value: f32::NAN.to_string() },
        Error::RateLimited { retry_after: Some(Duration::from_secs(7)) },
        Error::NoRoomForImages { limit: Bytes::mib(1), after: Duration::from_millis(5) },
        Error::ImageDecoderDied { end: ProcessEnd::Signal { number: 11 } },
        Error::NoRoomForAdapter { adapter: "x".into(), needed: Bytes(3), free: Bytes(2), limit: Bytes(9) },
        failed_start(Error::MissingTensor { tensor: "x".into() }),
    ];
    for error in errors {
        let sent = serde_json::to_string(&error).unwrap();
        let arrived: Error = serde_json::from_str(&sent).unwrap();
        assert_eq!((&arrived, arrived.root()), (&error, error.root()), "{sent}");
    }
}

#[cfg(unix)]
#[test]
fn a_path_that_is_no_unicode_is_sent_as_near_as_can_be() {
    use std::os::unix::ffi::OsStrExt as _;
    let path = std::ffi::OsStr::from_bytes(b"/models/\xff").into();
    let sent = serde_json::to_string(&Error::NoSuchDirectory { path }).unwrap();
    assert!(sent.contains("/models/\u{fffd}"), "{sent}");
}

#[test]
fn the_debug_form_of_an_error_is_its_sentence() {
    let error = Error::NoSuchDirectory { path: "/no/such".into() };
    assert_eq!(format!("{error:?}"), "there is no directory /no/such");
}
