//! From the configuration to the chains that lead knockers on to other ports and hosts.

use knockd_core::Forwards;

use super::plan::{Numbered, destination, families, is_admitted};
use super::ruleset::{Chain, Hook, Part};

/// Returns the chains, without those that would be empty.
///
/// `to` looks at the same sets as the guard, so that a lease is one element and cannot be open in one place only. `back` looks at none,
/// because the connection may have used up its door. Chains for NAT see the first packet of each connection, so rules for each door cost
/// others nothing.
pub(super) fn chains(doors: &[Numbered<'_>]) -> Vec<Chain> {
    let (mut to, mut back) = (Vec::new(), Vec::new());
    for &(number, door) in doors {
        for forward in door.forward.iter().flat_map(Forwards::iter) {
            let port = |port| Part::Ports(forward.protocol(), vec![port..=port]);
            let target = forward.target();
            let families = families(door).filter(|family| target.is_none_or(|target| family.has(target)));
            for family in families {
                to.push(vec![
                    port(forward.port()),
                    destination(door.target),
                    is_admitted((number, door), family),
                    Part::To(target, forward.target_port()),
                ]);
            }
            if let Some(target) = target.filter(|_| door.masquerade) {
                back.push(vec![
                    Part::Redirected,
                    Part::Destination(target),
                    port(forward.target_port()),
                    Part::OriginalPort(forward.port()),
                    Part::Masquerade,
                ]);
            }
        }
    }
    let chain = |name: &str, hook, rules| Chain { name: name.to_owned(), hook: Some(hook), rules };
    let all = [chain("to", Hook::ToTarget, to), chain("back", Hook::FromHere, back)];
    all.into_iter().filter(|chain| !chain.rules.is_empty()).collect()
}
