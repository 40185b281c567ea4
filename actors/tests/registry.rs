//! A named system stands in ractor's registry with all its actors, so that supervision tells them apart; an unnamed one
//! does not, and no two systems clash.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::*;
use model_actors::testing::{Act, Scripted, ScriptedLoader, StreamedScript};
use model_actors::{
    CallOptions, Error, ModelHandle, ModelSpec, PoolConfig, System, SystemBuilder, SystemConfig,
};
use ractor::registry::{registered, where_is};
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef};

fn builder() -> SystemBuilder {
    let (system, pool) = single();
    System::builder(system).pool::<Scripted>(pool.clone()).pool::<StreamedScript>(pool)
}

fn model(system: &System, id: &str) -> ModelHandle<Scripted> {
    let client = system.client::<Scripted>().unwrap();
    client.register(ModelSpec::new(id, ScriptedLoader::default())).unwrap()
}

fn names(of: &str) -> Vec<String> {
    let mut names = registered();
    names.retain(|name| name.split('/').next() == Some(of));
    names.sort();
    names
}

fn actor(name: &str) -> ActorCell {
    where_is(name).unwrap_or_else(|| panic!("{name} is not registered"))
}

#[tokio::test]
async fn every_actor_of_a_named_system_has_its_name_and_loses_it_with_its_end() {
    let system = builder().name("whole").start().await.unwrap();
    let always = ["whole", "whole/maintenance", "whole/scripted", "whole/streamed_script"];
    assert_eq!(names("whole"), always);
    assert_eq!(actor("whole").get_id(), system.cell().get_id());

    let english = model(&system, "acme/english");
    assert_eq!(ask(&english, Act::Reply(1)).await.unwrap(), 1);
    let client = system.client::<StreamedScript>().unwrap();
    let stream = client.register(ModelSpec::new("english", ScriptedLoader::default())).unwrap();
    assert_eq!(stream.call(Act::Stream(2).into(), CallOptions::default()).await.unwrap(), 2);
    let workers = ["whole/scripted/acme/english#1", "whole/streamed_script/english#1"];
    assert_eq!(names("whole").iter().filter(|name| name.contains('#')).collect::<Vec<_>>(), workers);

    // Supervision starts what is killed again, under the same name; a worker has a number of its own.
    for name in ["whole/maintenance", "whole/scripted", workers[1]] {
        let before = actor(name).get_id();
        actor(name).kill_and_wait(None).await.unwrap();
        if name == workers[1] {
            let call = async || stream.call(Act::Stream(2).into(), CallOptions::default()).await;
            assert_eq!(call().await.unwrap(), 2);
            actor("whole/streamed_script/english#2");
        } else {
            until_true(|| where_is(name).is_some_and(|actor| actor.get_id() != before)).await;
        }
    }
    model_actors::testing::wait_for(&mut system.watch(), "it is ready", |status| status.is_ready()).await;
    assert_eq!(ask(&english, Act::Reply(2)).await.unwrap(), 2);
    actor("whole/scripted/acme/english#2");

    english.unload(Duration::from_secs(20)).await.unwrap();
    until_true(|| !names("whole").iter().any(|name| name.contains("acme"))).await;
    system.shutdown().await;
    assert!(names("whole").is_empty(), "{:?}", names("whole"));
}

/// Its models have the same names and its workers the same numbers, so every name has to be free.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_free_once_the_end_of_its_system_is_known() {
    for value in 0..10 {
        let system = builder().name("again").start().await.unwrap_or_else(|error| panic!("{value}: {error}"));
        assert_eq!(ask(&model(&system, "model"), Act::Reply(value)).await.unwrap(), value);
        assert_eq!(system.status().model("scripted", "model").unwrap().failures, 0, "no name clashed");
        assert!(system.shutdown().await.is_clean());
    }
}

/// While one of a system's children has a name, the system cannot start: its name is as good as taken.
#[tokio::test]
async fn a_taken_name_of_a_child_is_a_taken_name() {
    let (squatter, _) = Squatter::spawn(Some("partly/scripted".to_owned()), Squatter, ()).await.unwrap();
    let error = builder().name("partly").start().await.map(drop).unwrap_err();
    assert!(matches!(&error, Error::InvalidConfig { setting, .. } if setting == "name"), "{error}");
    assert!(error.to_string().contains("partly/scripted"), "{error}");
    squatter.stop(None);
}

#[tokio::test]
async fn a_name_is_one_systems_at_a_time_and_unnamed_systems_have_none() {
    let first = builder().name("only").start().await.unwrap();
    let error = builder().name("only").start().await.map(drop).unwrap_err();
    assert!(matches!(&error, Error::InvalidConfig { setting, .. } if setting == "name"), "{error}");
    let before = names("only");
    // Others beside it, named and unnamed, with the same models.
    let others = [builder().name("other").start().await.unwrap(), builder().start().await.unwrap()];
    for (value, system) in others.iter().chain([&first]).enumerate() {
        assert_eq!(ask(&model(system, "model"), Act::Reply(value as u64)).await.unwrap(), value as u64);
    }
    assert_eq!(names("only").len(), before.len() + 1, "and a worker");
    assert_eq!(names("other").len(), names("only").len());
    for system in others.iter().chain([&first]) {
        assert!(system.shutdown().await.is_clean());
    }
}

#[tokio::test]
async fn a_name_that_cannot_be_one_is_refused() {
    for name in ["", "a\0b", "two\nlines", &"a".repeat(257)] {
        let builder = System::builder(SystemConfig::default()).pool::<Scripted>(PoolConfig::default());
        let error = builder.name(name).start().await.map(drop).unwrap_err();
        assert!(matches!(&error, Error::InvalidConfig { setting, .. } if setting == "name"), "{error}");
    }
}

/// Has a name and does nothing.
struct Squatter;

impl Actor for Squatter {
    type Msg = ();
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<()>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }
}

/// A restart that fails counts as a failure, within the budget: the system does not end with the first.
#[tokio::test]
async fn a_pool_that_cannot_be_started_again_is_tried_as_often_as_one_that_fails() {
    let (mut config, pool) = single();
    (config.restart.first_backoff, config.restart.max_backoff) = (millis(100), millis(100));
    let builder = System::builder(config).pool::<Scripted>(pool);
    let system = builder.name("squatted").start().await.unwrap();
    let model = model(&system, "model");
    actor("squatted/scripted").kill_and_wait(None).await.unwrap();
    let name = Some("squatted/scripted".to_owned());
    let (squatter, _) =
        Squatter::spawn(name, Squatter, ()).await.expect("the name is free until the restart");
    model_actors::testing::wait_for(&mut system.watch(), "it has failed", |status| status.state.has_ended())
        .await;
    let error = refused(&model, Act::Reply(1)).await;
    let Error::SystemFailed { cause } = &error else { panic!("{error}") };
    let words = cause.message();
    assert!(words.starts_with("scripted failed too often") && words.contains("squatted/scripted"), "{words}");
    squatter.stop_and_wait(None, None).await.unwrap();
    system.shutdown().await;
    let again = self::builder().name("squatted").start().await.expect("a failed system leaves its names too");
    again.shutdown().await;
}
