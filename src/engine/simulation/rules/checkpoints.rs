//! Rule R2: which checkpoint a task begins with, and what is trimmed on the strength of which.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use futures::executor::block_on;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};

use crate::engine::TopicNames;
use crate::engine::simulation::outcome::Outcome;
use crate::engine::simulation::process::Process;
use crate::engine::simulation::scene::{NEVER, Scene, equal, only_with_the_rule, values};
use crate::engine::simulation::settings::Settings;
use crate::planted::Fault;

const EXCHANGE: &str = "ruled.exchange.minutely";

/// A scene in which one window gathers numbers, from 1 on, from both partitions.
struct Gathering {
    scene: Scene,
    numbers: i64,
}

impl Gathering {
    fn new(settings: Settings) -> Self {
        Self { scene: Scene::new("", NEVER, settings), numbers: 0 }
    }

    /// More numbers come, and their process checkpoints them as it goes.
    fn more(&mut self, process: &Arc<Process>, numbers: i64) {
        for _ in 0..numbers {
            self.come();
            self.scene.work(process, 4);
        }
    }

    fn come(&mut self) {
        self.numbers += 1;
        (0..2).for_each(|partition| self.scene.comes(partition, "a", self.numbers, self.numbers % 50));
    }

    fn require_trimmed(&self) {
        let starts = self.scene.starts(EXCHANGE);
        assert!(starts.iter().any(|&start| start > 20), "nothing was trimmed, so nothing could be missing");
    }

    /// Whether the window holds all.
    fn end(self) -> Result<(), String> {
        let (count, total) = (2 * self.numbers, (1..=self.numbers).sum::<i64>() * 2);
        let outcome = self.scene.end()?;
        holds_all(&outcome, count, total)
    }

    /// Whether the topology is refused, with these words, rather than go on with state that is missing.
    fn refused(self, words: &str) -> Result<(), String> {
        let process = self.scene.start(0);
        self.scene.work(&process, 10);
        match self.scene.0.failure() {
            None => self.end().and(Err("it went on".to_owned())),
            Some(why) if why.contains(words) => {
                self.scene.give_up().unwrap_err();
                Ok(())
            }
            Some(why) => Err(why),
        }
    }
}

fn holds_all(outcome: &Outcome, count: i64, total: i64) -> Result<(), String> {
    let windows = values(outcome, "ruled.minutely");
    let expected = format!(r#""n":{count},"total":{total},"#);
    let found = windows.iter().any(|window| window.contains(&expected));
    if found { Ok(()) } else { Err(format!("no window has {expected} but {windows:?}")) }
}

/// A partition comes back to a machine whose checkpoint lies below what was trimmed since: a copy must be taken.
#[test]
fn r2_old_checkpoint() {
    only_with_the_rule(Fault::OldCheckpoint, || {
        let mut gathering = Gathering::new(Settings { hosts: 2, ..Settings::default() });
        let old = gathering.scene.start(0);
        gathering.more(&old, 3);
        gathering.scene.kill(&old);
        let next = gathering.scene.start(1);
        gathering.scene.work(&next, 4);
        gathering.more(&next, 20);
        gathering.scene.kill(&next);
        gathering.require_trimmed();
        gathering.end()
    });
}

/// A process is stopped with a copy on its way, and wakes when others are far ahead: what it uploads then replaces
/// nothing that is newer, and nobody begins with it.
#[test]
fn r2_late_upload() {
    only_with_the_rule(Fault::CopyReplacesNewer, || {
        let mut gathering = Gathering::new(Settings { hosts: 2, ..Settings::default() });
        let zombie = gathering.scene.start(0);
        gathering.more(&zombie, 3);
        while !zombie.has_jobs() {
            gathering.come();
            gathering.scene.turn(&zombie);
        }
        gathering.scene.pass(11);
        let next = gathering.scene.start(1);
        gathering.scene.work(&next, 6);
        gathering.more(&next, 20);
        gathering.require_trimmed();
        let trimmed = gathering.scene.starts(EXCHANGE);
        let uploads = copies(&gathering.scene);
        while zombie.has_jobs() {
            zombie.do_job();
        }
        equal("what is trimmed", gathering.scene.starts(EXCHANGE), trimmed)?;
        let newer = copies(&gathering.scene).is_superset(&uploads);
        gathering.scene.kill(&zombie);
        gathering.scene.kill(&next);
        (0..2).for_each(|host| gathering.scene.0.lose_disk(host));
        gathering.end()?;
        equal("the newer copies are there", newer, true)
    });
}

/// A process is fenced with copies on their way, and its successor folds what they hold, to the same offsets. What that
/// one changes is not laid over the other's blocks, whose borders are where other epochs left them.
#[test]
fn r2_a_copy_of_another_is_not_built_on() {
    only_with_the_rule(Fault::AnothersCopyTakenForOwn, || {
        let scene = Scene::new("retention: 1h", "2s", Settings { hosts: 2, ..Settings::default() });
        let first = scene.start(0);
        let turns = |process: &Arc<Process>, turns: usize| (0..turns).for_each(|_| scene.turn(process));
        let all_jobs = |process: &Arc<Process>| {
            while process.has_jobs() {
                process.do_job();
            }
        };
        // The first minute closes while the second partition sleeps, and is corrected when that wakes: a key at a time,
        // the last ones first, so that each makes a block of its own.
        scene.comes(1, "-", 1, 0);
        ["a", "z"].iter().for_each(|key| scene.comes(0, key, 1, 1));
        scene.comes(0, "-", 1, 100);
        scene.work(&first, 10);
        scene.pass(5);
        scene.work(&first, 10);
        let keys: Vec<String> = ('b'..='y').map(String::from).collect();
        for key in keys.iter().rev() {
            scene.comes(1, key, 1, 2);
            turns(&first, 3);
        }
        all_jobs(&first);
        scene.comes(1, "-", 1, 2);
        turns(&first, 3);
        scene.pass(11);
        let next = scene.start(1);
        turns(&next, 6);
        all_jobs(&first);
        let uploaded = copies(&scene);
        // An epoch in which most tasks do not move.
        scene.comes(1, "-", 1, 2);
        scene.work(&next, 4);
        keys.iter().for_each(|key| scene.comes(1, key, 1, 3));
        scene.work(&next, 6);
        assert!(!uploaded.is_disjoint(&copies(&scene)), "the other's copies are gone, and are not built on");
        scene.kill(&first);
        scene.kill(&next);
        (0..2).for_each(|host| scene.0.lose_disk(host));
        let last = scene.start(0);
        keys.iter().for_each(|key| scene.comes(1, key, 1, 4));
        scene.work(&last, 10);
        let outcome = scene.end()?;
        let counted = |key: &String| {
            let of_key = format!(r#""k":"{key}","n":"#);
            let windows = values(&outcome, "ruled.minutely").into_iter();
            windows.filter_map(|window| window.split_once(&of_key).map(|(_, n)| n[..1].to_owned())).max()
        };
        let wrong: Vec<_> = keys.iter().filter(|key| counted(key).as_deref() != Some("3")).collect();
        equal("keys that were not counted three times", wrong, Vec::new())
    });
}

/// The newest copy turns out to be damaged: the one before it still has its records.
#[test]
fn r2_the_newest_copy_is_damaged() {
    only_with_the_rule(Fault::TrimmedToNewest, || {
        let mut gathering = Gathering::new(Settings::default());
        let process = gathering.scene.start(0);
        gathering.more(&process, 15);
        gathering.require_trimmed();
        gathering.scene.kill(&process);
        gathering.scene.0.lose_disk(0);
        let mut newest: Option<Path> = None;
        for copy in copies(&gathering.scene).into_iter().chain([Path::from("none/none/last.json")]) {
            let folder = |path: &Path| path.as_ref().rsplit_once('/').map(|(folder, _)| folder.to_owned());
            if let Some(newest) = newest.filter(|newest| folder(newest) != folder(&copy)) {
                let damaged = PutPayload::from_static(b"damaged");
                block_on(gathering.scene.0.objects.put(&newest, damaged)).unwrap();
            }
            newest = Some(copy);
        }
        gathering.end()
    });
}

/// The object store is away for long: a checkpoint that lies on one machine only is no reason to trim anything.
#[test]
fn r2_nothing_is_trimmed_without_a_copy() {
    only_with_the_rule(Fault::TrimmedUncopied, || {
        let mut gathering = Gathering::new(Settings { objects_fail: 1_000_000, ..Settings::default() });
        let process = gathering.scene.start(0);
        gathering.more(&process, 5);
        gathering.scene.0.trouble(1_000_000);
        gathering.more(&process, 15);
        gathering.scene.0.calm();
        gathering.scene.kill(&process);
        gathering.scene.0.lose_disk(0);
        gathering.end()
    });
}

/// All copies are gone, and the log begins above offset 0: what is left of it is not taken for the whole.
#[test]
fn r2_a_log_without_its_beginning_is_refused() {
    only_with_the_rule(Fault::FoldsWhatIsLeft, || {
        let mut gathering = Gathering::new(Settings::default());
        let process = gathering.scene.start(0);
        gathering.more(&process, 15);
        gathering.require_trimmed();
        gathering.scene.kill(&process);
        gathering.scene.0.lose_disk(0);
        for object in objects(&gathering.scene) {
            block_on(gathering.scene.0.objects.delete(&object)).unwrap();
        }
        gathering.refused("checkpoint")
    });
}

/// The group's offsets have expired: to begin anew above what was done already would count everything twice.
#[test]
fn r2_expired_offsets_are_refused() {
    only_with_the_rule(Fault::ExpiredOffsetsBeginAnew, || {
        let never = Duration::from_secs(86_400);
        let mut gathering = Gathering::new(Settings { checkpoint_interval: never, ..Settings::default() });
        let process = gathering.scene.start(0);
        gathering.more(&process, 5);
        gathering.scene.kill(&process);
        gathering.scene.0.log.expire_offsets(&TopicNames::of(&gathering.scene.0.plan).group);
        gathering.refused("has no offsets any more")
    });
}

fn objects(scene: &Scene) -> Vec<Path> {
    let listed: Vec<_> = block_on(scene.0.objects.list(None).try_collect()).unwrap();
    listed.into_iter().map(|object| object.location).collect()
}

/// The manifests of all copies, by task and then by offset.
fn copies(scene: &Scene) -> BTreeSet<Path> {
    objects(scene).into_iter().filter(|path| path.extension() == Some("json")).collect()
}
