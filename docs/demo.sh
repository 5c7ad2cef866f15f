# The session that ./dev demo shows: umvm run bash docs/demo.sh
set -eu
examples=$(cd "$(dirname "$0")/examples" && pwd)
cd "$(mktemp -d)"
trap 'cd / && rm -rf "$OLDPWD"' EXIT

# Print a command as if it had been typed, then run it.
show() {
    printf '\n$ %s\n' "$1"
    eval "$1"
}

echo "A shell in the VM $UMVM_NAME, as user $(id -un). Nothing here needs privilege."
mkdir mem hello
show 'umvm insmod memory'
show 'umvm mount -t memory -o size=64m none mem'
show 'df -h mem'
show 'cp -a "$examples" mem/files && ls -l mem/files'
show 'tar cf - -C mem files | tar tvf - | head -3'
if command -v git >/dev/null; then
    show 'git init -q mem/repo && cd mem/repo'
    show 'cp ../files/* . && git add . && git -c user.name=me -c user.email=me@host commit -qm first'
    show 'git log --stat --format=%s | tail -3 && cd ../..'
fi
if command -v sqlite3 >/dev/null; then
    show 'sqlite3 mem/x.db "create table t(a); insert into t values (6), (7); select sum(a) from t"'
fi
show 'umvm mount -t fusepy "$examples/hello.py:Hello" hello -o name=umvm'
show 'cat hello/hello'
show 'umvm insmod "$examples/nodename.py" name=mars && uname -n'
show 'umvm lsmod'
show 'umvm mounts'
show 'umvm ps'
show 'umvm rmmod nodename && umvm umount hello && umvm umount mem && ls -A mem hello'
show 'umvm rmmod memory && umvm lsmod'
