"""git: many small files, renames, locks, mappings of packs, hooks and helpers of its own."""

from __future__ import annotations

import pytest
from same import Same

SETUP = r"""
export GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=$PWD/config GIT_AUTHOR_DATE='2001-02-03T04:05:06Z' GIT_COMMITTER_DATE='2001-02-03T04:05:06Z'
git config --global user.name Name; git config --global user.email a@b.c; git config --global init.defaultBranch main; git config --global core.pager cat; git config --global gc.auto 0; git config --global advice.detachedHead false
fill() { mkdir -p src/sub; for i in $(seq 30); do echo "file $i" >src/f$i; seq $i 300 >src/sub/g$i; done; ln -s src/f1 link; echo '*.o' >.gitignore; touch x.o; printf '#!/bin/sh\n' >run; chmod +x run; }
git init -q r; cd r; fill; git add -A; git commit -qm one
"""
SCRIPTS = {
    "commits": r"""
git log --format='%H %s'; git status --short; echo more >>src/f1; rm src/f2; git mv src/f3 src/moved; touch new; git status --short; git diff --stat; git add -A; git commit -qm two; git log --oneline --stat | cat; git show --stat HEAD~1 | wc -l; git ls-files | wc -l
git ls-files -s link run src/f1; git cat-file -p HEAD^{tree}; git rev-parse HEAD; git blame src/f1 | cut -d'(' -f1; git grep -n 'file 7'; git archive HEAD | tar t | wc -l; git checkout -q HEAD~1 && ls src | wc -l; git checkout -q main; git reset -q --hard HEAD~1; git reflog | cat; git clean -fdx; git status --short
chmod -x run; git status --short; git checkout run; stat -c %a run; git update-index --chmod=-x run; git diff --cached; git rm -q --cached link; git commit -qam three; git revert --no-edit HEAD | tail -2; git tag -a v1 -m tag; git describe; git format-patch -1 --stdout | head -3; git notes add -m n; git gc -q; git fsck --full
""",
    "branches": r"""
git checkout -qb topic; echo topic >>src/f5; git commit -qam topic; git checkout -q main; echo main >>src/f6; git commit -qam main; git merge -q --no-edit topic; git log --oneline --graph | cat; git checkout -qb a HEAD~1; echo a >>src/f9; git commit -qam a; git checkout -qb b HEAD~1; echo b >>src/f9; git commit -qam b
git merge a; git diff | tail -8; git status --short; git checkout --ours src/f9; git add src/f9; git commit -qm merged; git rebase main 2>&1 | tail -1; git status | head -3; git rebase --abort 2>/dev/null; git stash list; echo dirty >>src/f10; echo new >untracked; git stash -u -q; git status --short; git stash list; git stash pop -q; git status --short
git checkout -q -- src/f10; git cherry-pick a 2>&1 | tail -1; git cherry-pick --abort 2>/dev/null; git branch -D topic -q; git branch -a; git branch -m b renamed; git branch --contains main; git for-each-ref | wc -l; git checkout -q main; git diff main renamed --stat | tail -1; git merge-base main renamed; git rev-list --all | wc -l
""",
    "clones": r"""
cd ..; git clone -q r c; cd c; git log --oneline | cat; git remote -v | sed "s,$OLDPWD,,"; echo c >>src/f1; git commit -qam c; git push -q origin HEAD:refs/heads/from-c; cd ../r; git branch; git merge -q from-c; git log --oneline | wc -l; cd ../c; git pull -q; git status -sb; cd ..; git clone -q --bare r bare.git; git clone -q file://$PWD/bare.git f; ls f | wc -l
git clone -q --depth 1 file://$PWD/bare.git shallow; git -C shallow log --oneline | wc -l; git clone -q --mirror r m.git; git clone -q --shared r s; git -C s fsck; git -C r bundle create -q ../b.bundle --all; git clone -q b.bundle u; diff -r r/src u/src && echo equal; printf '#!/bin/sh\nread a b ref; echo "hook $ref"\n' >bare.git/hooks/post-receive; chmod +x bare.git/hooks/post-receive
cd f; echo push >p; git add p; git commit -qm p; git push -q; git fetch -q; git submodule --quiet add ../r sub 2>&1 | head -1; git -c protocol.file.allow=always submodule --quiet add ../r sub; git commit -qm sub; ls sub | wc -l; cat .gitmodules; cat sub/.git; git ls-remote ../bare.git | wc -l
""",
    "worktrees": r"""
git worktree add -q ../w -b work; cd ../w; echo w >>src/f4; git commit -qam w; cat .git | sed "s,$(cd ..; pwd),,"; cd ../r; git worktree list | wc -l; git merge -q work; git worktree remove ../w; ls ..; git worktree prune -v; for i in 1 2 3 4 5 6 7 8; do echo $i >>count; [ $i -ge 5 ] && echo bad >count2; git add -A; git commit -qm $i; done
git bisect start -q HEAD HEAD~8 >/dev/null; git bisect run sh -c '[ ! -e count2 ]' | grep 'first bad'; git log --format=%s -1 refs/bisect/bad; git bisect reset 2>/dev/null; git sparse-checkout set src/sub; ls; ls src; git sparse-checkout disable; ls | wc -l; git repack -adq; git prune-packed; git count-objects -v | grep -E 'packs|in-pack'; ls .git/objects/pack | sed 's/.*\.//'
git verify-pack .git/objects/pack/*.idx && echo verified; git commit-graph write -q 2>/dev/null; git multi-pack-index write 2>/dev/null; git log --oneline -- src/f4 | cat; git config core.fsmonitor false; git update-index --refresh; git status --short; git filter-branch -f --msg-filter 'sed s/^/x/' HEAD 2>/dev/null | tail -1; git log --format=%s -1; (sleep 0.2; touch .git/index.lock) & git status --short; wait; git add -A; rm .git/index.lock; git maintenance run --task=gc; git fsck
""",
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_script(same: Same, name: str) -> None:
    same(f"{SETUP}{SCRIPTS[name]}\nexit 0", "git")
