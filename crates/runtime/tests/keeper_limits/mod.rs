//! Limits that a pooled sandbox has before anybody needs it, and that an instance gets its own all the same.

use std::fs;
use std::path::Path;

use utsuwa_model::quantity::MemoryBytes;
use utsuwa_runtime::Driver;
use utsuwa_runtime::keeper::PoolLimits;

use super::busybox::possible;
use super::keeper_world::{Server, World, memory_limit, until};

/// The memory limits of all sandboxes, smallest first.
fn limits(sandboxes: &Path) -> Vec<Option<u64>> {
    let all = fs::read_dir(sandboxes).unwrap().flatten();
    let records = all.filter_map(|one| fs::read(one.path().join("process.json")).ok());
    let pids = records.filter_map(|record| {
        let record: serde_json::Value = serde_json::from_slice(&record).ok()?;
        u32::try_from(record["pid"].as_u64()?).ok()
    });
    let mut limits: Vec<Option<u64>> = pids.map(memory_limit).collect();
    limits.sort_unstable();
    limits
}

async fn a_full_pool(server: &Server) {
    until("a full pool", async || {
        let status = server.driver.status().await.unwrap();
        status.pool_ready >= status.pool_target && status.pool_making == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_has_its_own_limits_whatever_its_sandbox_had() {
    if !possible("an_instance_has_its_own_limits_whatever_its_sandbox_had") {
        return;
    }
    let mut world = World::with(|config| {
        config.pool = PoolLimits {
            min: 1,
            max: 1,
            calm: 0,
            after_burst: 0,
        }
    });
    let server = world.server().await;
    let sandboxes = world.config.runtime_dir().join("sandboxes");
    a_full_pool(&server).await;
    assert_eq!(limits(&sandboxes), [None], "nothing was started yet");
    let (small, large) = (64 << 20, 256 << 20);
    let mut all = vec![];
    // The second finds its own; the third gets more than its sandbox had, the fourth less.
    for memory in [small, small, large, small] {
        let mut spec = world.spec("while :; do sleep 1; done");
        spec.limits.memory = MemoryBytes(memory);
        let id = spec.id.clone();
        server.driver.start(spec).await.unwrap();
        let pid = server.driver.pid(&id).unwrap();
        assert_eq!(memory_limit(pid), Some(memory));
        all.push(Some(memory));
        a_full_pool(&server).await;
        let mut expected = all.clone();
        // Of the one that waits.
        expected.push(Some(memory));
        expected.sort_unstable();
        assert_eq!(limits(&sandboxes), expected);
    }
    drop(server);
    world.down();
}
