use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use futures_util::FutureExt;
use proptest::prelude::*;

use super::*;
use crate::budget::Place;
use crate::client::{Client, UnderWay};
use crate::places::{Own, Shared};

proptest! {
    /// Against a reading of the law that looks at everything for each one that is taken.
    #[test]
    fn the_client_with_most_gives_its_longest_idle_first(
        owners in proptest::collection::vec(0_usize..6, 0..60),
        order in any::<u64>(),
        count in 0_usize..70,
    ) {
        let idle: Vec<Idle> = owners.iter().enumerate().map(|(number, client)| {
            // Each its own, in an order of their own.
            let since = (number as u64).wrapping_mul(order | 1);
            Idle { client: *client, since, number }
        }).collect();
        let taken = longest(idle.clone(), count);
        let mut left = idle;
        for number in &taken {
            let mut held: BTreeMap<usize, usize> = BTreeMap::new();
            for one in &left {
                *held.entry(one.client).or_default() += 1;
            }
            let most = held.values().max().copied().unwrap_or(0);
            let expected = left.iter().filter(|one| held[&one.client] == most).min_by_key(|one| one.since);
            prop_assert_eq!(expected.map(|one| one.number), Some(*number));
            left.retain(|one| one.number != *number);
        }
        prop_assert_eq!(taken.len(), count.min(owners.len()));
    }
}

/// What somebody does.
#[derive(Debug, Clone, Copy)]
enum Act {
    /// Another connection of this client, with its first request.
    Come(u8),
    /// The answer of this connection ends.
    Answered(usize),
    /// Its next request begins.
    Ask(usize),
    Go(usize),
    /// A request of a client, or of an instance, begins or ends.
    Request(usize),
    RequestEnds,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (0_u8..4).prop_map(Act::Come),
        6 => any::<usize>().prop_map(Act::Answered),
        2 => any::<usize>().prop_map(Act::Ask),
        1 => any::<usize>().prop_map(Act::Go),
        2 => (0_usize..2).prop_map(Act::Request),
        1 => Just(Act::RequestEnds),
    ]
}

struct Connection {
    client: Arc<Client>,
    under_way: Option<UnderWay>,
}

fn come(shared: &Shared, number: u8) -> Option<Connection> {
    let arrival = shared.hall.enter().now_or_never()?;
    let address = IpAddr::V4(Ipv4Addr::new(1, 1, 1, number));
    let own: Own = shared.client(address, arrival).now_or_never()??;
    let client = Client::new(address, own);
    let under_way = client.begin().ok();
    Some(Connection { client, under_way })
}

/// As the tasks do of those that were asked to close: what isn't idle, or had a request since, stays and may be asked again.
/// Whether any was asked.
fn heed(connections: &mut Vec<Connection>) -> bool {
    let mut asked = false;
    connections.retain(|one| {
        let heard = one.client.called().now_or_never().is_some();
        asked |= heard;
        let stays = one.client.is_busy() || !one.client.is_called();
        if heard && stays {
            one.client.stays(true);
        }
        !heard || stays
    });
    asked
}

proptest! {
    /// Whatever happens: no more is open than there is, whoever has a place gets room, and nobody busy is asked to close.
    #[test]
    fn there_is_room_for_every_place(acts in proptest::collection::vec(act(), 0..400)) {
        let settings = IngressSettings {
            max_connections: 8,
            max_requests: 8,
            max_instance_connections: 4,
            max_instance_requests: 4,
            max_idle: 10,
            ..IngressSettings::default()
        };
        let bell = Arc::default();
        let budget = |whose, limit| Budget::new(whose, limit, &bell);
        let shared = Shared::made_of(&settings, &bell, &budget("idle", settings.max_idle));
        let hall = Arc::clone(&shared.hall);
        let sharers = [shared.public_requests(), shared.instance_requests()];
        let (mut connections, mut requests): (Vec<Connection>, Vec<Place>) = Default::default();
        for act in acts {
            let at = |number: usize, all: usize| (all > 0).then(|| number % all.max(1));
            match act {
                Act::Come(client) => {
                    // It waits for room at most until those have closed that were asked to.
                    let full = shared.busy() == 8;
                    let mut came = come(&shared, client);
                    if came.is_none() && !full {
                        heed(&mut connections);
                        came = come(&shared, client);
                    }
                    connections.extend(came);
                }
                Act::Answered(number) => {
                    if let Some(at) = at(number, connections.len()) {
                        connections[at].under_way = None;
                    }
                }
                Act::Ask(number) => {
                    if let Some(at) = at(number, connections.len()) {
                        let one = &mut connections[at];
                        one.under_way = one.under_way.take().or_else(|| one.client.begin().ok());
                    }
                }
                Act::Go(number) => {
                    if let Some(at) = at(number, connections.len()) {
                        connections.swap_remove(at);
                    }
                }
                Act::Request(of) => requests.extend(sharers[of].share().take().ok()),
                Act::RequestEnds => drop(requests.pop()),
            }
            let called = connections.iter().filter(|one| one.client.is_called());
            prop_assert_eq!(called.count(), hall.promised.load(Ordering::SeqCst));
            while hall.room().now_or_never().is_none() {
                prop_assert!(heed(&mut connections), "{} used, and nobody is asked to close", hall.used());
            }
            prop_assert!(hall.used() <= hall.limit);
            let busy = connections.iter().filter(|one| one.under_way.is_some()).count();
            prop_assert_eq!(shared.busy(), busy);
            prop_assert_eq!(hall.open(), connections.len());
        }
        drop((connections, requests));
        prop_assert_eq!((hall.open(), shared.busy(), hall.used()), (0, 0, 0));
        prop_assert_eq!(hall.promised.load(Ordering::SeqCst), 0);
        prop_assert!(hall.known.lock().stays.is_empty());
    }
}

/// The request that came just when its connection was asked to close: its task hears of it all the same, and then it may be asked
/// again.
#[test]
fn one_whose_request_came_first_hears_that_it_was_asked() {
    let settings = IngressSettings::default();
    let bell = Arc::default();
    let idle = Budget::new("idle", settings.max_idle, &bell);
    let shared = Shared::made_of(&settings, &bell, &idle);
    let mut one = come(&shared, 1).unwrap();
    one.under_way = None;
    let known = shared.hall.known.lock().stays.values().next().cloned();
    let stay = known.and_then(|known| known.upgrade()).unwrap();
    shared.hall.promised.fetch_add(1, Ordering::SeqCst);
    assert!(stay.call());
    one.under_way = one.client.begin().ok();
    assert_eq!(shared.hall.promised.load(Ordering::SeqCst), 0);
    assert!(one.client.called().now_or_never().is_some());
    one.client.stays(true);
    one.under_way = None;
    assert!(stay.idle().is_some() && stay.call());
}
