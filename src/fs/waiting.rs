//! Which questions may take long: those that need what a backup's directory shows, before that is known.
//!
//! Making a [view](super::view) opens every chain and goes through a whole tar archive where it has no index yet. Whoever
//! has few threads to answer with asks here first, so that one slow archive does not keep all of them.

use super::Inode;
use super::nodes::What;
use super::tree::Tree;

impl Tree {
    /// The same for a question about its attributes alone: those of a backup's directory are known from its name.
    #[must_use]
    pub fn may_wait_for_attributes(&self, inode: Inode) -> bool {
        let is_backup = self.nodes.get(inode).is_ok_and(|node| matches!(node.what, What::Backup(_)));
        !is_backup && self.may_wait(inode)
    }

    /// Whether a question about `inode` may have to look into its backup first, or wait for somebody who does.
    #[must_use]
    pub fn may_wait(&self, inode: Inode) -> bool {
        let Ok(node) = self.nodes.get(inode) else { return false };
        let in_archive = match node.what {
            What::Root | What::Guest(_) | What::Latest(_) | What::Control | What::Status => return false,
            What::Archive(_) => Some(inode),
            What::Member(_) => Some(node.parent),
            What::Backup(_) | What::File(_) | What::Disk(_) | What::Partition(..) | What::Broken(_) => None,
        };
        // Entries of an archive that is open are found without the view.
        if in_archive.is_some_and(|top| self.archives.is_known(top, node.version)) {
            return false;
        }
        // Whoever has a file open is answered from that.
        if self.handles.content(inode).is_some() {
            return false;
        }
        let Ok(at) = self.locate(inode) else { return false };
        let (Some(id), Some(text)) = (&at.guest, &at.backup) else { return false };
        let Ok(guest) = self.store.guest(id) else { return false };
        let Some(summary) = guest.find(text) else { return false };
        let slot = self.views.get(&(guest.id.clone(), summary.name.clone()));
        !slot.is_some_and(|slot| slot.is_fresh())
    }
}
