//! Which page of the KV cache holds what: reference counts, and the tree of shared beginnings.
//!
//! A full page can be *published*: the tree then knows it by its tokens, the tokens before it and
//! the rotary variant, and any later sequence that begins alike uses the same page. Pages in the
//! tree are never written again. What is shared only in part is copied. Published pages that no
//! sequence uses are the pool's reserve: the one that was used longest ago is taken first.
//!
//! Whoever holds a published page also holds all pages before it, so that a page without holders
//! never has a held one below it.

use tangor_device::PageId;
use tangor_plan::model::rope::Variant;

/// A place in the tree: the pages from the beginning up to here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodeId(usize);

#[derive(Debug)]
struct Node {
    parent: NodeId,
    /// Tokens of the page: `page_tokens` of them, or fewer in a leaf.
    tokens: Box<[u32]>,
    page: PageId,
    children: Vec<NodeId>,
    /// When it was last used, in calls.
    used: u64,
}

/// A beginning that is in the cache already.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Where the whole pages end.
    pub(crate) node: NodeId,
    /// Whole pages; the caller holds them now.
    pub(crate) pages: Vec<PageId>,
    /// A page whose first tokens continue the beginning, and how many: to be copied. The caller
    /// holds it too, and releases it when it is copied.
    pub(crate) partial: Option<(PageId, usize)>,
}

/// All pages of the cache.
#[derive(Debug)]
pub(crate) struct Pages {
    page_tokens: usize,
    free: Vec<PageId>,
    /// Holders of each page; the tree is one.
    holders: Vec<u32>,
    /// Slots of nodes; the first [`ROOTS`] are the empty beginnings of the rotary variants.
    nodes: Vec<Option<Node>>,
    vacant: Vec<usize>,
    clock: u64,
}

const ROOTS: usize = 2;

impl Pages {
    /// A pool of `pages` free pages of `page_tokens` tokens.
    pub(crate) fn new(pages: usize, page_tokens: usize) -> Self {
        let root = || {
            Some(Node {
                parent: NodeId(0),
                tokens: Box::default(),
                page: PageId::MAX,
                children: Vec::new(),
                used: 0,
            })
        };
        let count = PageId::try_from(pages).unwrap_or(PageId::MAX);
        Self {
            page_tokens,
            free: (0..count).rev().collect(),
            holders: vec![0; count as usize],
            nodes: (0..ROOTS).map(|_| root()).collect(),
            vacant: Vec::new(),
            clock: 0,
        }
    }

    /// Tokens per page.
    pub(crate) fn page_tokens(&self) -> usize {
        self.page_tokens
    }

    /// The beginning of every sequence.
    pub(crate) fn root(variant: Variant) -> NodeId {
        NodeId(match variant {
            Variant::Short => 0,
            Variant::Long => 1,
        })
    }

    /// Pages that [`Pages::allocate`] can still hand out.
    pub(crate) fn available(&self) -> usize {
        self.free.len() + self.unheld().count()
    }

    /// Pages that are in no sequence and not in the tree.
    #[cfg(test)]
    pub(crate) fn free(&self) -> usize {
        self.free.len()
    }

    fn unheld(&self) -> impl Iterator<Item = (usize, &Node)> {
        let nodes = self.nodes.iter().enumerate().skip(ROOTS);
        nodes
            .filter_map(|(id, node)| Some((id, node.as_ref()?)))
            .filter(|(_, node)| self.holders[node.page as usize] == 1)
    }

    /// A page for the caller alone: a free one, or else the published one that was used longest
    /// ago. `None`: all are held.
    pub(crate) fn allocate(&mut self) -> Option<PageId> {
        if self.free.is_empty() {
            let leaves = self.unheld().filter(|(_, node)| node.children.is_empty());
            let (oldest, _) = leaves.min_by_key(|(id, node)| (node.used, *id))?;
            self.forget(oldest);
        }
        let page = self.free.pop()?;
        self.holders[page as usize] = 1;
        Some(page)
    }

    /// Takes a leaf out of the tree.
    fn forget(&mut self, id: usize) {
        let Some(node) = self.nodes[id].take() else { return };
        if let Some(parent) = &mut self.nodes[node.parent.0] {
            parent.children.retain(|child| child.0 != id);
        }
        self.vacant.push(id);
        self.release(node.page);
    }

    /// Gives a held page back.
    pub(crate) fn release(&mut self, page: PageId) {
        let holders = &mut self.holders[page as usize];
        *holders = holders.saturating_sub(1);
        if *holders == 0 {
            self.free.push(page);
        }
    }

    /// The longest continuation of `from` by `tokens` that is in the tree.
    pub(crate) fn find(&mut self, from: NodeId, tokens: &[u32]) -> Found {
        self.clock += 1;
        let mut found = Found { node: from, pages: Vec::new(), partial: None };
        let mut rest = tokens;
        while let Some((child, common)) = self.best_child(found.node, rest) {
            let Some(node) = &mut self.nodes[child.0] else { break };
            node.used = self.clock;
            self.holders[node.page as usize] += 1;
            if common < self.page_tokens {
                found.partial = Some((node.page, common));
                break;
            }
            found.pages.push(node.page);
            found.node = child;
            rest = &rest[common..];
        }
        found
    }

    /// The child with the longest common beginning with `tokens`, unless nothing is common.
    fn best_child(&self, parent: NodeId, tokens: &[u32]) -> Option<(NodeId, usize)> {
        let children = &self.nodes[parent.0].as_ref()?.children;
        let common = |&id: &NodeId| {
            let node = self.nodes[id.0].as_ref();
            let pairs = node.into_iter().flat_map(|node| node.tokens.iter().zip(tokens));
            (id, pairs.take_while(|(a, b)| a == b).count())
        };
        children.iter().map(common).filter(|(_, n)| *n > 0).max_by_key(|(_, n)| *n)
    }

    /// Publishes a page that the caller holds: `tokens` continue `parent`. Returns the page's place
    /// and the page to use from now on, which is another one if an equal page was published before.
    ///
    /// A page with fewer tokens than fit can be published only by a caller that releases it next.
    pub(crate) fn publish(
        &mut self,
        parent: NodeId,
        tokens: &[u32],
        page: PageId,
    ) -> (NodeId, PageId) {
        self.clock += 1;
        if let Some((child, common)) = self.best_child(parent, tokens)
            && common == tokens.len()
            && let Some(node) = &mut self.nodes[child.0]
            && (node.tokens.len() == common || common < self.page_tokens)
        {
            node.used = self.clock;
            let same = node.page;
            self.holders[same as usize] += 1;
            self.release(page);
            return (child, same);
        }
        self.holders[page as usize] += 1;
        let node =
            Node { parent, tokens: tokens.into(), page, children: Vec::new(), used: self.clock };
        let id = NodeId(self.vacant.pop().unwrap_or(self.nodes.len()));
        if id.0 == self.nodes.len() {
            self.nodes.push(None);
        }
        self.nodes[id.0] = Some(node);
        if let Some(parent) = &mut self.nodes[parent.0] {
            parent.children.push(id);
        }
        (id, page)
    }

    /// The place `pages` pages before a place.
    pub(crate) fn ancestor(&self, node: NodeId, pages: usize) -> NodeId {
        (0..pages).fold(node, |node, _| match &self.nodes[node.0] {
            Some(inner) if node.0 >= ROOTS => inner.parent,
            _ => node,
        })
    }

    /// Whether every page is accounted for: its holders are the tree and the holders in `held`, and
    /// it is free if there are none.
    ///
    /// # Errors
    /// The first page that is not.
    pub(crate) fn check(&self, held: impl Iterator<Item = PageId>) -> Result<(), String> {
        let mut expected = vec![0_u32; self.holders.len()];
        held.for_each(|page| expected[page as usize] += 1);
        for node in self.nodes.iter().skip(ROOTS).flatten() {
            expected[node.page as usize] += 1;
        }
        for (page, (&expected, &holders)) in expected.iter().zip(&self.holders).enumerate() {
            if expected != holders {
                return Err(format!("page {page} has {expected} holders and counts {holders}"));
            }
        }
        let mut free = vec![false; self.holders.len()];
        for &page in &self.free {
            if std::mem::replace(&mut free[page as usize], true) {
                return Err(format!("page {page} is free twice"));
            }
        }
        match (0..free.len()).find(|&page| free[page] != (self.holders[page] == 0)) {
            Some(page) => Err(format!("page {page} is lost, or free and held")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: Variant = Variant::Short;

    /// Publishes `tokens` in pages of 4 and gives everything back.
    fn remember(pages: &mut Pages, tokens: &[u32]) {
        let mut node = Pages::root(ROOT);
        let mut held = Vec::new();
        for chunk in tokens.chunks(4) {
            let page = pages.allocate().unwrap();
            let (next, page) = pages.publish(node, chunk, page);
            node = next;
            held.push(page);
        }
        held.into_iter().for_each(|page| pages.release(page));
        pages.check(std::iter::empty()).unwrap();
    }

    fn found(pages: &mut Pages, tokens: &[u32]) -> usize {
        let found = pages.find(Pages::root(ROOT), tokens);
        let tokens = found.pages.len() * 4 + found.partial.map_or(0, |(_, n)| n);
        let held = found.pages.into_iter().chain(found.partial.map(|(page, _)| page));
        held.for_each(|page| pages.release(page));
        tokens
    }

    #[test]
    fn finds_the_longest_published_beginning() {
        let mut pages = Pages::new(16, 4);
        remember(&mut pages, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
        remember(&mut pages, &[1, 2, 3, 4, 5, 6, 0, 0]);
        for (tokens, expected) in [
            (&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11][..], 10),
            (&[1, 2, 3, 4, 5, 6, 7, 0], 7),
            (&[1, 2, 3, 4, 5, 6, 0, 1], 7),
            (&[1, 2, 9], 2),
            (&[2, 2, 3, 4], 0),
            (&[], 0),
        ] {
            assert_eq!(found(&mut pages, tokens), expected, "{tokens:?}");
        }
        let long = pages.find(Pages::root(Variant::Long), &[1, 2, 3, 4]);
        assert_eq!((long.pages.len(), long.partial), (0, None), "variants share nothing");
    }

    #[test]
    fn equal_pages_are_kept_once() {
        let mut pages = Pages::new(8, 4);
        remember(&mut pages, &[1, 2, 3, 4, 5, 6, 7, 8]);
        let free = pages.free();
        remember(&mut pages, &[1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(pages.free(), free);
    }

    #[test]
    fn evicts_what_was_used_longest_ago_and_never_what_is_held() {
        let mut pages = Pages::new(4, 4);
        remember(&mut pages, &[1, 1, 1, 1]);
        remember(&mut pages, &[2, 2, 2, 2, 3, 3, 3, 3]);
        let held = pages.find(Pages::root(ROOT), &[2, 2, 2, 2]);
        let taken: Vec<_> = std::iter::from_fn(|| pages.allocate()).collect();
        assert_eq!(taken.len(), 3);
        assert_eq!(pages.available(), 0);
        pages.check(taken.iter().copied().chain(held.pages)).unwrap();
        assert_eq!(found(&mut pages, &[2, 2, 2, 2, 3]), 4);
        assert_eq!(found(&mut pages, &[1, 1]), 0);
    }

    #[test]
    fn a_leak_and_a_double_release_are_noticed() {
        let mut pages = Pages::new(4, 4);
        let page = pages.allocate().unwrap();
        assert!(pages.check(std::iter::empty()).is_err());
        pages.release(page);
        assert!(pages.check(std::iter::once(page)).is_err());
        assert_eq!(pages.check(std::iter::empty()), Ok(()));
    }
}
