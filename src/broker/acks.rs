//! Which ack frames are sent, and for how many deliveries each. Pure: knows the tags of
//! one channel, and nothing of what they stand for.

use std::collections::VecDeque;

/// What becomes of a delivery.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Disposition {
    /// Its row is committed.
    Ack,
    /// The broker dead-letters it, whole.
    Reject,
    /// The broker delivers it again.
    Return,
}

/// One frame to the broker.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum AckFrame {
    /// This delivery, and every one before it that is neither acked nor rejected.
    AckUpTo(u64),
    Ack(u64),
    Reject(u64),
    Return(u64),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Open,
    /// To be acked: the frame is not sent.
    Acked,
    Sent,
}

/// The deliveries that were handed out, from the oldest that is not disposed of. One ack for
/// many is what makes acks cheap, on both sides.
#[derive(Debug, Default)]
pub(super) struct Outstanding {
    /// The tag of the first; the broker counts them up one by one.
    first: u64,
    states: VecDeque<State>,
}

impl Outstanding {
    /// A delivery was handed out.
    pub fn hand_out(&mut self, tag: u64) {
        if self.states.is_empty() {
            self.first = tag;
        }
        // Were one left out, it would count as open, and no ack for many would reach past it.
        let place = tag.saturating_sub(self.first);
        self.states.resize(usize::try_from(place).map_or(0, |place| place + 1), State::Open);
    }

    /// A delivery was disposed of. A reject and a return are frames at once, acks are when they are asked for.
    pub fn dispose(&mut self, tag: u64, disposition: Disposition) -> Option<AckFrame> {
        let place = usize::try_from(tag.checked_sub(self.first)?).ok()?;
        let state = self.states.get_mut(place).filter(|state| **state == State::Open)?;
        match disposition {
            Disposition::Ack => {
                *state = State::Acked;
                None
            }
            Disposition::Reject => {
                *state = State::Sent;
                Some(AckFrame::Reject(tag))
            }
            Disposition::Return => {
                *state = State::Sent;
                Some(AckFrame::Return(tag))
            }
        }
    }

    /// One ack for all those before the oldest that is still open.
    pub fn ack_oldest(&mut self) -> Option<AckFrame> {
        let mut frame = None;
        while let Some(state) = self.states.front().filter(|state| **state != State::Open) {
            if *state == State::Acked {
                frame = Some(AckFrame::AckUpTo(self.first));
            }
            self.states.pop_front();
            self.first += 1;
        }
        frame
    }

    /// Whether any is to be acked behind the oldest that is still open.
    pub fn has_rest(&self) -> bool {
        self.states.contains(&State::Acked)
    }

    /// An ack for each of those behind the oldest that is still open: it may take long.
    pub fn ack_rest(&mut self) -> Vec<AckFrame> {
        let places = self.states.iter_mut().zip(self.first..);
        let acked = places.filter(|(state, _)| **state == State::Acked);
        acked
            .map(|(state, tag)| {
                *state = State::Sent;
                AckFrame::Ack(tag)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;

    /// A broker that closes the channel, as RabbitMQ does, when a tag is acked twice.
    #[derive(Default)]
    struct Broker {
        unacked: BTreeSet<u64>,
        rejected: BTreeSet<u64>,
    }

    impl Broker {
        fn receive(&mut self, frame: AckFrame, committed: &BTreeSet<u64>) {
            let meant: Vec<u64> = match frame {
                AckFrame::AckUpTo(tag) => {
                    assert!(self.unacked.contains(&tag), "a tag is acked twice");
                    self.unacked.range(..=tag).copied().collect()
                }
                AckFrame::Ack(tag) => vec![tag],
                AckFrame::Reject(tag) | AckFrame::Return(tag) => {
                    self.rejected.insert(tag);
                    vec![tag]
                }
            };
            for tag in meant {
                assert!(committed.contains(&tag), "{tag} was acked before its commit");
                assert!(self.unacked.remove(&tag), "{tag} was acked twice");
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        HandOut,
        Dispose(Index, Disposition),
        AckOldest,
        AckRest,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let rare = prop::sample::select(vec![Disposition::Reject, Disposition::Return]);
        let disposition = prop_oneof![9 => Just(Disposition::Ack), 1 => rare];
        let step = prop_oneof![
            4 => Just(Step::HandOut),
            4 => (any::<Index>(), disposition).prop_map(|(which, what)| Step::Dispose(which, what)),
            2 => Just(Step::AckOldest),
            1 => Just(Step::AckRest),
        ];
        prop::collection::vec(step, 0..200)
    }

    proptest! {
        /// Whatever the order in which rows are committed.
        #[test]
        fn nothing_is_acked_before_its_commit_and_all_of_it_once(steps in steps(), first in 1..1_000_u64) {
            let mut outstanding = Outstanding::default();
            let mut broker = Broker::default();
            let (mut open, mut committed, mut rejected) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
            let mut tag = first;
            for step in steps {
                match step {
                    Step::HandOut => {
                        outstanding.hand_out(tag);
                        broker.unacked.insert(tag);
                        open.push(tag);
                        tag += 1;
                    }
                    Step::Dispose(which, disposition) if !open.is_empty() => {
                        let tag = open.swap_remove(which.index(open.len()));
                        committed.insert(tag);
                        if disposition != Disposition::Ack {
                            rejected.insert(tag);
                        }
                        outstanding.dispose(tag, disposition).into_iter().for_each(|frame| broker.receive(frame, &committed));
                    }
                    Step::Dispose(..) => {}
                    Step::AckOldest => {
                        outstanding.ack_oldest().into_iter().for_each(|frame| broker.receive(frame, &committed));
                    }
                    Step::AckRest => {
                        outstanding.ack_rest().into_iter().for_each(|frame| broker.receive(frame, &committed));
                    }
                }
            }
            outstanding.ack_oldest().into_iter().for_each(|frame| broker.receive(frame, &committed));
            outstanding.ack_rest().into_iter().for_each(|frame| broker.receive(frame, &committed));
            let open: BTreeSet<u64> = open.into_iter().collect();
            prop_assert_eq!(&broker.unacked, &open, "what is committed is acked in the end");
            prop_assert_eq!(&broker.rejected, &rejected, "and what is rejected or returned is not acked");
        }
    }

    #[test]
    fn a_run_of_acks_is_one_frame() {
        let mut outstanding = Outstanding::default();
        (1..=100).for_each(|tag| outstanding.hand_out(tag));
        for tag in (1..=100).filter(|tag| *tag != 70) {
            assert_eq!(outstanding.dispose(tag, Disposition::Ack), None);
        }
        assert_eq!(outstanding.ack_oldest(), Some(AckFrame::AckUpTo(69)));
        assert_eq!(outstanding.ack_oldest(), None);
        assert_eq!(outstanding.ack_rest(), (71..=100).map(AckFrame::Ack).collect::<Vec<_>>());
        outstanding.dispose(70, Disposition::Ack);
        assert_eq!(outstanding.ack_oldest(), Some(AckFrame::AckUpTo(70)));
        assert_eq!(outstanding.ack_rest(), []);
    }
}
