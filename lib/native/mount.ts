/** mount(2) and umount2(2), which Node has no function for. */

import { declareLibc } from './libc.js'

/** MS_ */
export const MountFlag = { RDONLY: 1, NOSUID: 2, NODEV: 4, NOEXEC: 8, SYNCHRONOUS: 16, DIRSYNC: 128 } as const
/** MNT_ and UMOUNT_ */
export const UnmountFlag = { FORCE: 1, DETACH: 2, NOFOLLOW: 8 } as const

const mount2 = declareLibc<[source: string, target: string, type: string, flags: number, data: string]>(
  'int mount(const char *source, const char *target, const char *type, unsigned long flags, const char *data)',
)
const umount2 = declareLibc<[target: string, flags: number]>('int umount2(const char *target, int flags)')

/** mount(2). @throws SystemCallError */
export function mount(source: string, target: string, type: string, flags: number, data: string): void {
  mount2(source, target, type, flags, data)
}

/** umount2(2); symbolic links are not followed. @throws SystemCallError, EBUSY among them */
export function unmount(target: string, flags = 0): void {
  umount2(target, flags | UnmountFlag.NOFOLLOW)
}
