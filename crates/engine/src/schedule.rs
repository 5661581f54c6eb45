//! Continuous batching: which rows of which sequences run next.
//!
//! Every running sequence that generates has one row in every batch; prompts share what is left of
//! the batch equally: all its room, or the rows that those which generate can wait for (see
//! [`pace`](crate::pace)). A sequence is admitted, when its turn comes, as soon as there are
//! pages for all its tokens: clients that have several waiting take turns, one each. If a growing
//! sequence finds no page, pages are taken from idle sessions (the one unused for longest first),
//! then from waiting sequences, then from the running sequence that was admitted last: it is
//! computed again later, with equal bits where one device runs both stages. (What another device
//! decoded is then read as a prompt, by the one that reads prompts, which may round otherwise.) The
//! one admitted first always gets on, so that all do.
//!
//! Embeddings come from batches of their own, which stop in front of the output head and take turns
//! with the others.
//!
//! Where a batch has no rows of prompts, tokens that are proposed behind a sequence join its row;
//! see [`speculate`](crate::speculate).

use crate::sequence::{Notice, Phase, SequenceId};
use crate::step::{Core, PageCopy, Work, WorkSpan};
use tangor_plan::Stage;

impl Core {
    /// The next batch, or `None` if there is nothing to do.
    pub(crate) fn next_work(&mut self) -> Option<Work> {
        while let Some(id) = self.suspects.pop_front() {
            if self.running.contains(&id) && self.grow(id) {
                return self.batch(&[id], false);
            }
        }
        for id in self.running.clone() {
            if self.running.contains(&id) {
                self.grow(id);
            }
        }
        self.admit();
        let generating = |id: &SequenceId| self.sequences.get(id).is_some_and(|s| s.rest() == 1);
        let embeds = |id: &SequenceId| self.sequences.get(id).is_some_and(|s| s.embeds());
        let (embedded, others): (Vec<_>, Vec<_>) = self.running.iter().copied().partition(embeds);
        if !embedded.is_empty() && (others.is_empty() || !self.last_was_hidden) {
            return self.batch(&embedded, false);
        }
        let (one, many): (Vec<_>, Vec<_>) = others.into_iter().partition(generating);
        let ids = if self.limits.mixed {
            [one, many].concat()
        } else if many.is_empty() || (self.last_was_prefill && !one.is_empty()) {
            one
        } else {
            many
        };
        self.batch(&ids, true)
    }

    /// Makes a batch of the sequences `ids`, those with one row first; either all of them embed, or
    /// none does. Proposals may join them where no prompt does: a batch with a prompt has rows
    /// enough to be worth reading the weights.
    fn batch(&mut self, ids: &[SequenceId], may_propose: bool) -> Option<Work> {
        let rests: Vec<usize> =
            ids.iter().map(|id| self.sequences.get(id).map_or(0, |s| s.rest())).collect();
        let single = rests.iter().take_while(|rest| **rest == 1).count();
        let shares = share(self.prompt_rows(single), &rests[single..]);
        let rows = std::iter::repeat_n(1, single).chain(shares);
        let mut work = Work {
            stage: Stage::Decode,
            copies: std::mem::take(&mut self.copies),
            tokens: Vec::new(),
            spans: Vec::new(),
            logit_rows: Vec::new(),
            hidden: ids.iter().any(|id| self.sequences.get(id).is_some_and(|s| s.embeds())),
        };
        let proposing = may_propose && self.limits.verify && single == ids.len();
        let mut drafts = if proposing { self.propose(ids) } else { Vec::new() }.into_iter();
        for (&id, rows) in ids.iter().zip(rows) {
            match drafts.next().filter(|draft| !draft.is_empty()) {
                Some(draft) => self.add_draft(&mut work, id, &draft),
                None => self.add_span(&mut work, id, rows),
            }
        }
        if work.hidden {
            work.stage = Stage::Prefill;
        }
        self.last_was_prefill = work.stage == Stage::Prefill;
        self.last_was_hidden = work.hidden;
        (!work.spans.is_empty()).then_some(work)
    }

    /// Rows of prompts that the next batch may have beside `single` others; where answers wait for
    /// it, no more than they can wait for.
    fn prompt_rows(&self, single: usize) -> usize {
        let room = self.limits.prefill_rows.min(self.limits.max_rows.saturating_sub(single));
        let generates = |id| self.sequences.get(id).is_some_and(|s| s.rest() == 1);
        match self.running.iter().any(generates) {
            true => self.pace.rows(single, room),
            false => room,
        }
    }

    /// Adds up to `rows` rows of a sequence to a batch.
    fn add_span(&mut self, work: &mut Work, id: SequenceId, rows: usize) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let start = sequence.computed;
        let unwanted = sequence.logits_from.saturating_sub(start);
        // Hidden states are no wider than other values, and need no bound of their own.
        let most = if work.hidden { self.limits.max_rows } else { self.limits.logit_rows };
        let logits_left = most.saturating_sub(work.logit_rows.len());
        let rows = rows.min(unwanted + logits_left);
        if rows == 0 {
            return;
        }
        if sequence.used == 0 {
            self.notices.push((id, Notice::Started));
        }
        let first = work.tokens.len();
        let logits = rows.saturating_sub(unwanted);
        work.tokens.extend_from_slice(&sequence.tokens[start..start + rows]);
        work.logit_rows.extend(first + rows - logits..first + rows);
        if rows > 1 {
            work.stage = Stage::Prefill;
        }
        work.spans.push(WorkSpan {
            id,
            rows: first..first + rows,
            start,
            pages: sequence.pages.clone(),
            rope: sequence.rope,
            logits,
            proposed: 0,
        });
    }

    /// Adds the last token of a sequence and as much of what is proposed behind it as its pages
    /// hold. A further page is taken only where each running sequence could still have one.
    fn add_draft(&mut self, work: &mut Work, id: SequenceId, draft: &[u32]) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let (start, size) = (sequence.computed, self.limits.page_tokens);
        let first = sequence.pages.len();
        let missing = (start + 1 + draft.len()).div_ceil(size).saturating_sub(first);
        if missing > 0 && self.pages.available() >= missing + self.running.len() {
            sequence.pages.extend((0..missing).map_while(|_| self.pages.allocate()));
        }
        let draft = &draft[..draft.len().min(sequence.pages.len() * size - start - 1)];
        if draft.is_empty() {
            return self.add_span(work, id, 1);
        }
        if let Some(job) = &mut sequence.job {
            job.usage.drafted += draft.len();
        }
        let rows = work.tokens.len()..work.tokens.len() + 1 + draft.len();
        work.stage = Stage::Verify;
        work.tokens.extend(sequence.tokens[start..].iter().chain(draft));
        work.logit_rows.extend(rows.clone());
        work.spans.push(WorkSpan {
            id,
            start,
            pages: sequence.pages.clone(),
            rope: sequence.rope,
            logits: rows.len(),
            proposed: draft.len(),
            rows,
        });
    }

    /// Puts a sequence into the queue: behind those of its client, each of which has the turn after
    /// the one before it, and behind whoever else has the same turn already.
    pub(crate) fn wait(&mut self, id: SequenceId) {
        let client = self.sequences[&id].client();
        let queued = self.waiting.iter().map(|id| &self.sequences[id]);
        let last = queued.filter(|other| other.client() == client).map(|other| other.turn).max();
        let turn = last.map_or(self.turn, |last| self.turn.max(last + 1));
        let place = self.waiting.partition_point(|other| self.sequences[other].turn <= turn);
        self.waiting.insert(place, id);
        if let Some(sequence) = self.sequences.get_mut(&id) {
            (sequence.turn, sequence.phase) = (turn, Phase::Waiting);
        }
    }

    /// Moves waiting sequences to the running ones, as long as there is room.
    fn admit(&mut self) {
        while self.running.len() < self.limits.max_sequences
            && let Some(&id) = self.waiting.front()
            && self.reserve(id)
        {
            self.waiting.pop_front();
            self.running.push(id);
            if let Some(sequence) = self.sequences.get_mut(&id) {
                sequence.phase = Phase::Running;
                self.turn = self.turn.max(sequence.turn);
            }
        }
    }

    /// Gets pages for all tokens of a waiting sequence, shared ones where there are any.
    fn reserve(&mut self, id: SequenceId) -> bool {
        let mut partial = self.share_beginning(id);
        let Some(sequence) = self.sequences.get(&id) else { return true };
        let needed = sequence.tokens.len().div_ceil(self.limits.page_tokens);
        let missing = needed.saturating_sub(sequence.pages.len());
        while self.pages.available() < missing && self.take_from_resting(id) {}
        if self.pages.available() < missing {
            // The page to be copied may be the very one that is missing.
            partial.take().into_iter().for_each(|(page, _)| self.pages.release(page));
        }
        if self.pages.available() < missing {
            return false;
        }
        let Some(sequence) = self.sequences.get_mut(&id) else { return true };
        let first = sequence.pages.len();
        sequence.pages.extend((0..missing).map_while(|_| self.pages.allocate()));
        if let Some((from, tokens)) = partial
            && let Some(&to) = sequence.pages.get(first)
        {
            self.copies.push(PageCopy { id, from, to, tokens });
            sequence.computed += tokens;
        }
        if let Some(job) = &mut sequence.job
            && sequence.used == 0
        {
            job.usage.cached = sequence.computed;
        }
        true
    }

    /// Looks up how much of a sequence is in the cache already. Whole pages become the sequence's;
    /// a page that is shared in part is returned, held, to be copied.
    fn share_beginning(&mut self, id: SequenceId) -> Option<(u32, usize)> {
        let sequence = self.sequences.get_mut(&id)?;
        let size = self.limits.page_tokens;
        let whole = sequence.computed == sequence.published * size;
        if !self.limits.prefix_cache || !whole || sequence.pages.len() > sequence.published {
            return None;
        }
        // At least one row has to run, and every row whose logits are wanted.
        let most = sequence.tokens.len().saturating_sub(1).min(sequence.logits_from);
        let tokens = sequence.tokens.get(sequence.computed..most)?;
        let found = self.pages.find(sequence.node, tokens);
        sequence.node = found.node;
        sequence.published += found.pages.len();
        sequence.computed += found.pages.len() * size;
        sequence.pages.extend(found.pages);
        found.partial
    }

    /// Gets the page that a running sequence needs next; `false` if it lost its own instead.
    fn grow(&mut self, id: SequenceId) -> bool {
        loop {
            let Some(sequence) = self.sequences.get_mut(&id) else { return false };
            if sequence.tokens.len() <= sequence.pages.len() * self.limits.page_tokens {
                return true;
            }
            if let Some(page) = self.pages.allocate() {
                sequence.pages.push(page);
            } else if !self.take_from_resting(id) {
                let Some(&last) = self.running.last() else { return false };
                self.preempt(last);
                if last == id {
                    return false;
                }
            }
        }
    }

    /// Takes the pages of one sequence that does not run, other than `id`: idle sessions first, the
    /// one unused for longest, then waiting sequences, the last in the queue.
    fn take_from_resting(&mut self, id: SequenceId) -> bool {
        let idle = self.sequences.iter().filter(|(_, s)| s.phase == Phase::Idle);
        let idle = idle.filter(|(other, s)| **other != id && !s.pages.is_empty());
        let oldest = idle.min_by_key(|(_, s)| s.used).map(|(other, _)| *other);
        let waiting = || {
            let mut waiting = self.waiting.iter().rev().copied();
            waiting.find(|other| *other != id && !self.sequences[other].pages.is_empty())
        };
        let victim = oldest.or_else(waiting);
        victim.into_iter().for_each(|victim| self.preempt(victim));
        victim.is_some()
    }

    /// Takes a sequence's pages; if it was running, it is the first to run again.
    fn preempt(&mut self, id: SequenceId) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        sequence.release(&mut self.pages, self.limits.prefix_cache);
        if sequence.phase == Phase::Running {
            sequence.phase = Phase::Waiting;
            self.running.retain(|other| *other != id);
            self.waiting.push_front(id);
        }
    }
}

/// Divides `budget` rows among sequences that need `needs`: nobody gets more than it needs, and
/// nobody less than another unless it needs less; rows that do not divide go to the first.
fn share(budget: usize, needs: &[usize]) -> Vec<usize> {
    let mut shares = vec![0; needs.len()];
    let mut left = budget.min(needs.iter().sum());
    while left > 0 {
        let hungry = (0..needs.len()).filter(|&i| shares[i] < needs[i]).count().max(1);
        let each = (left / hungry).max(1);
        for (share, need) in shares.iter_mut().zip(needs) {
            let more = each.min(need - *share).min(left);
            *share += more;
            left -= more;
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::share;

    #[test]
    fn rows_are_shared_equally_and_none_is_wasted() {
        for (budget, needs, expected) in [
            (10, &[100][..], &[10][..]),
            (10, &[3, 100], &[3, 7]),
            (10, &[100, 3, 100], &[4, 3, 3]),
            (2, &[5, 5, 5], &[1, 1, 0]),
            (100, &[5, 6], &[5, 6]),
            (0, &[5], &[0]),
            (7, &[], &[]),
        ] {
            assert_eq!(share(budget, needs), expected, "{budget} among {needs:?}");
        }
    }
}
