//! The loops on a fake world: deploy, wake, sleep, fail, update, delete, restart.

mod clock;
mod deploys;
mod domains;
#[path = "../house/mod.rs"]
mod house;
mod instances;
mod memory;
mod restarts;
mod services;
mod traffic;

use house::{House, template};

async fn hello() -> (House, utsuwa_model::ServiceKey, utsuwa_model::RevisionKey) {
    let house = House::new().await;
    house.images.put("hello:1");
    let key = house.create("hello", template("hello:1")).await;
    house.until_ready(&key).await;
    let revision = house.routed("hello.localhost").expect("routed");
    (house, key, revision)
}
