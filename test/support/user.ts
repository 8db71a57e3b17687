/**
 * An ordinary user, in a mount namespace of his own: there /dev/fuse is open to everybody, as distributions have it,
 * and /etc/fuse.conf is the test's, whatever this machine has. Node and the project are where he can read them.
 */

import { chmodSync, existsSync } from 'node:fs'
import { join, relative } from 'node:path'
import { CLI, type Result, ROOT, run, start, until } from './run.js'
import { type TestCase, temporaryFolder } from './temp.js'
import { withTransport } from './transports.js'

/** nobody; and somebody else who is nobody either. */
export const USER = 65534
export const STRANGER = 65533

/** Builds the namespace and stays, so that it lives. Everything is gone with the last process in it. */
const PREPARE = `
set -e
mount -t tmpfs -o mode=755 none "$D"
mknod -m 666 "$D/fuse" c 10 229
mount --bind "$D/fuse" /dev/fuse
printf '%s\\n' $CONF >"$D/fuse.conf"
mountpoint -q /sys/fs/fuse/connections || mount -t fusectl none /sys/fs/fuse/connections
[ -e /etc/fuse.conf ] && mount --bind "$D/fuse.conf" /etc/fuse.conf
mkdir "$D/project" "$D/home" "$D/run"
touch "$D/node"
mount --bind "$ROOT" "$D/project"
mount --bind "$NODE" "$D/node"
chown ${USER}:${USER} "$D/home" "$D/run"
chmod 700 "$D/run"
eval "$ALSO"
touch "$D/ready"
exec sleep 1000`

export interface UserWorld {
  /** A folder of his, which others can look into. */
  readonly home: string
  /** Runs a program as the user, or as another one. */
  run(program: string, args: readonly string[], uid?: number): Result
  /** Runs `vdiskfs ARGS` as the user. */
  vdiskfs(args: readonly string[], uid?: number): Result
}

/**
 * @param conf lines of /etc/fuse.conf
 * @param also what else is done in the namespace at its beginning, as root
 */
export async function userWorld(t: TestCase, conf: readonly string[] = [], also = ''): Promise<UserWorld> {
  const folder = temporaryFolder(t)
  chmodSync(folder, 0o755)
  const inside = start(t, 'unshare', ['--mount', '--propagation', 'private', 'sh', '-c', PREPARE], {
    env: { D: folder, ROOT, NODE: process.execPath, CONF: conf.join(' '), ALSO: also },
  })
  const namespace = `/proc/${inside.pid}/ns/mnt`
  await until('the namespace is ready', () => existsSync(`/proc/${inside.pid}/root${folder}/ready`))
  const home = join(folder, 'home')
  const asUser = (program: string, args: readonly string[], uid = USER): Result =>
    run(
      'nsenter',
      [`--mount=${namespace}`, 'setpriv', `--reuid=${uid}`, `--regid=${uid}`, '--clear-groups', program, ...args],
      {
        env: { XDG_RUNTIME_DIR: join(folder, 'run'), HOME: home },
      },
    )
  return {
    home,
    run: asUser,
    vdiskfs: (args, uid) =>
      asUser(join(folder, 'node'), [join(folder, 'project', relative(ROOT, CLI)), ...withTransport(args)], uid),
  }
}
