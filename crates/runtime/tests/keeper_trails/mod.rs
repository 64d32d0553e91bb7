//! Somebody goes ahead of a start: what an instance looked up is known to the kernel in the next one before its program asks.

use std::fs;
use std::time::Duration;

use tokio::time::Instant;
use utsuwa_model::InstanceId;
use utsuwa_runtime::Driver;
use utsuwa_runtime::sandbox::trail;

use crate::busybox::possible;
use crate::keeper_world::{PATIENCE, Server, UID_BASE, World, until};

/// More than it takes to be worth going ahead.
const FILES: usize = 200;
/// The kernel says now and then that it doesn't know what it does: a look that may not wait gives way to whoever changes something.
const MISSED: usize = 10;
/// A walk takes a millisecond or two.
const WALK: Duration = Duration::from_secs(1);
/// The same program in all instances: only the first, told so by its environment, looks at any of the files.
const LOOK: &str = "trap 'sleep 0.1; exit 0' TERM; [ -n \"$LOOK\" ] && cat /many/* >/dev/null; while :; do sleep 0.01; done";

async fn pid(server: &Server, id: &InstanceId) -> u32 {
    let listed = server.driver.list().await.unwrap();
    listed.iter().find(|found| found.id == *id).unwrap().pid
}

/// Whether the kernel has entries for the files in the root file system of `pid`, without looking any of them up.
fn are_known(pid: u32, owner: u32) -> bool {
    // In a thread of its own, which it takes rights from.
    let looking = std::thread::Builder::new().spawn(move || trail::of(pid, owner).unwrap());
    let known = looking.unwrap().join().unwrap();
    let files = trail::paths(&known).filter(|path| path.starts_with("many/file-"));
    files.count() >= FILES - MISSED
}

/// A world with an image of many files, and specs of instances of it.
struct Scene {
    world: World,
    server: Server,
    many: String,
}

impl Scene {
    async fn new() -> Self {
        let world = World::new();
        let server = world.server().await;
        let many = world.make_layer(7, |root| {
            fs::create_dir_all(root.join("many")).unwrap();
            for number in 0..FILES {
                fs::write(root.join(format!("many/file-{number}")), "x").unwrap();
            }
        });
        Self {
            world,
            server,
            many,
        }
    }

    /// Starts one; answers it and its process.
    async fn start(&mut self, uid_base: u32, looks: bool) -> (InstanceId, u32) {
        let mut spec = self.world.spec(LOOK);
        spec.rootfs.layers.push(self.many.clone());
        spec.rootfs.uid_base = uid_base;
        spec.process.env.extend(looks.then(|| "LOOK=1".to_owned()));
        let id = spec.id.clone();
        self.server.driver.start(spec).await.unwrap();
        let pid = pid(&self.server, &id).await;
        (id, pid)
    }

    /// One that has looked at all files.
    async fn one_that_looked(&mut self, uid_base: u32) -> InstanceId {
        let (id, pid) = self.start(uid_base, true).await;
        until("it has looked at all", async || are_known(pid, uid_base)).await;
        id
    }

    /// Whether somebody goes ahead of one that is started now.
    async fn is_led(&mut self, uid_base: u32) -> bool {
        let (_, pid) = self.start(uid_base, false).await;
        let began = Instant::now();
        until("a walk is over", async || {
            are_known(pid, uid_base) || began.elapsed() >= WALK
        })
        .await;
        are_known(pid, uid_base)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_instance_looked_up_is_known_in_the_next_before_it_asks() {
    if !possible("what_an_instance_looked_up_is_known_in_the_next_before_it_asks") {
        return;
    }
    let mut scene = Scene::new().await;
    let id = scene.one_that_looked(UID_BASE).await;
    scene.server.driver.freeze(&id).await.unwrap();
    // What is learnt is learnt beside: the next start may come too early, one of those after it doesn't.
    until("one starts with somebody ahead of it", async || {
        scene.is_led(UID_BASE).await
    })
    .await;
    // Another service with the same image and the same program has nothing of it.
    assert!(!scene.is_led(UID_BASE + 0x1_0000).await);
    scene.world.down();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_instance_looked_up_is_learnt_when_it_is_stopped_without_ever_being_frozen() {
    if !possible(
        "what_an_instance_looked_up_is_learnt_when_it_is_stopped_without_ever_being_frozen",
    ) {
        return;
    }
    let mut scene = Scene::new().await;
    let id = scene.one_that_looked(UID_BASE).await;
    scene.server.driver.stop(id, PATIENCE).await.unwrap();
    until("one starts with somebody ahead of it", async || {
        scene.is_led(UID_BASE).await
    })
    .await;
    scene.world.down();
}

/// The numbers of the mounts that the descriptors of a process lead to.
fn mounts_held(pid: u32) -> Vec<String> {
    let infos = fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap();
    let texts = infos.filter_map(|info| fs::read_to_string(info.ok()?.path()).ok());
    let number = |text: String| {
        let line = text.lines().find_map(|line| line.strip_prefix("mnt_id:"))?;
        Some(line.trim().to_owned())
    };
    texts.filter_map(number).collect()
}

/// The number of the mount that is the root of a process.
fn root_mount(pid: u32) -> String {
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    let fields = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>());
    let mut roots = fields.filter(|fields| fields[4] == "/");
    roots.next_back().unwrap()[0].to_owned()
}

/// The root of the next start is mounted and walked when an instance sleeps or ends, and the next start takes it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_awake_finds_its_root_ready() {
    if !possible("who_was_awake_finds_its_root_ready") {
        return;
    }
    let mut scene = Scene::new().await;
    let id = scene.one_that_looked(UID_BASE).await;
    scene.server.driver.stop(id, PATIENCE).await.unwrap();
    let spawners = scene.server.driver.status().await.unwrap().spawner_pids;
    let held = || -> Vec<String> { spawners.iter().flat_map(|pid| mounts_held(*pid)).collect() };
    // Nothing that starts meanwhile: it is made while nothing does. That nobody looks at it says that it was walked.
    let owner = UID_BASE;
    let walked = || {
        spawners.iter().any(|pid| {
            let files = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
            files.flatten().any(|file| {
                let path = file.path().to_string_lossy().into_owned();
                let looking = std::thread::Builder::new().spawn(move || {
                    let known = trail::at(&path, owner).unwrap_or_default();
                    trail::paths(&known)
                        .filter(|path| path.starts_with("many/file-"))
                        .count()
                });
                looking.unwrap().join().unwrap() >= FILES - MISSED
            })
        })
    };
    until("a root stands ready", async || walked()).await;
    let ready = held();
    let (_, pid) = scene.start(UID_BASE, false).await;
    assert!(ready.contains(&root_mount(pid)), "{ready:?}");
    assert!(are_known(pid, UID_BASE), "at once");
    // It is taken once, and by no other service.
    assert!(!held().contains(&root_mount(pid)));
    for owner in [UID_BASE, UID_BASE + 0x1_0000] {
        let (_, pid) = scene.start(owner, false).await;
        assert!(!ready.contains(&root_mount(pid)), "{ready:?}");
    }
    scene.world.down();
}
