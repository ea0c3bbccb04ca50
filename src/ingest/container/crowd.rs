//! Which directory of a tree has the most names.

/// Counts the names in directories as tar lists their members: each directory before all that is in it, and nothing else between.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    /// The directories around the member that came last, outermost first, and how many names of each have come.
    around: Vec<(String, u64)>,
    largest: (String, u64),
}

impl Crowd {
    pub(super) fn add(&mut self, member: &str) {
        let Some((directory, _)) = member.trim_end_matches('/').rsplit_once('/') else { return };
        let holds =
            |outer: &str| directory.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        while self.around.last().is_some_and(|(outer, _)| !holds(outer)) {
            self.around.pop();
        }
        let known = self.around.pop_if(|(known, _)| known == directory);
        let (name, before) = known.unwrap_or_else(|| (directory.to_owned(), 0));
        let names = before.saturating_add(1);
        if names > self.largest.1 {
            if self.largest.0 != name {
                self.largest.0.clone_from(&name);
            }
            self.largest.1 = names;
        }
        self.around.push((name, names));
    }

    /// The directory with the most names as tar writes it, without a slash at its end, and their number.
    pub(super) fn largest(&self) -> (&str, u64) {
        (&self.largest.0, self.largest.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_counted_in_their_own_directory_whatever_comes_between() {
        let largest = |members: &[&str]| {
            let mut crowd = Crowd::default();
            members.iter().for_each(|member| crowd.add(member));
            let (directory, names) = crowd.largest();
            (directory.to_owned(), names)
        };
        assert_eq!(largest(&["./"]), (String::new(), 0));
        let members = [
            "./", "./a", "./d/", "./d/1", "./d/e/", "./d/e/1", "./d/e/2", "./d/e/3", "./d/2", "./b", "./dd/", "./dd/1",
        ];
        assert_eq!(largest(&members), (".".to_owned(), 4));
        assert_eq!(largest(&members[2..9]), ("./d/e".to_owned(), 3));
        assert_eq!(largest(&[&members[2..9], &["./d/3", "./d/4"]].concat()), ("./d".to_owned(), 5));
        assert_eq!(largest(&["./d/1", "./dd/1", "./dd/2"]), ("./dd".to_owned(), 2), "no part of the other");
    }
}
