//! Named things in file order, found by name.

/// Items in the order of their file, with an index by name: one number per item, no copies of
/// names.
#[derive(Debug)]
pub(crate) struct Table<T> {
    items: Vec<T>,
    /// Positions in `items`, by name.
    by_name: Vec<usize>,
}

/// What has a name.
pub(crate) trait Named {
    fn name(&self) -> &str;
}

impl<T: Named> Table<T> {
    /// Indexes `items`; the name that occurs twice, if one does.
    pub(crate) fn new(items: Vec<T>) -> Result<Self, String> {
        let name = |&index: &usize| items.get(index).map_or("", T::name);
        let mut by_name: Vec<usize> = (0..items.len()).collect();
        by_name.sort_unstable_by(|a, b| name(a).cmp(name(b)));
        let twice = by_name.windows(2).find_map(|pair| match pair {
            [a, b] if name(a) == name(b) => Some(name(a).to_owned()),
            _ => None,
        });
        match twice {
            Some(name) => Err(name),
            None => Ok(Self { items, by_name }),
        }
    }

    pub(crate) fn get(&self, name: &str) -> Option<&T> {
        let item = |&index: &usize| self.items.get(index);
        let found =
            self.by_name.binary_search_by(|i| item(i).map_or("", T::name).cmp(name)).ok()?;
        self.by_name.get(found).and_then(item)
    }

    pub(crate) fn iter(&self) -> std::slice::Iter<'_, T> {
        self.items.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Item(&'static str, u8);

    impl Named for Item {
        fn name(&self) -> &str {
            self.0
        }
    }

    #[test]
    fn finds_every_item_by_name_and_keeps_their_order() {
        let table = Table::new(vec![Item("b", 0), Item("c", 1), Item("a", 2)]).unwrap();
        assert_eq!(table.iter().map(|i| i.0).collect::<String>(), "bca");
        assert_eq!(["a", "b", "c"].map(|n| table.get(n).unwrap().1), [2, 0, 1]);
        assert!(table.get("d").is_none());
    }

    #[test]
    fn names_the_item_that_occurs_twice() {
        let items = vec![Item("b", 0), Item("a", 1), Item("b", 2)];
        assert_eq!(Table::new(items).unwrap_err(), "b");
    }
}
