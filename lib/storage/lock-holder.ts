/**
 * Who holds a byte-range lock, for the message that says so. The kernel names no process for OFD locks, but every
 * descriptor's `/proc/PID/fdinfo` lists the locks it holds. Only /proc is read and nothing is followed, so that a hung
 * file system that some process uses cannot hang us. Best effort: other users' processes cannot be looked into.
 */

import { fstatSync, readdirSync, readFileSync, readlinkSync, realpathSync } from 'node:fs'
import { basename } from 'node:path'

/** `lock:	1: OFDLCK ADVISORY READ -1 fe:00:2146328 100 100`: device, inode, first byte, last byte or EOF. */
const LOCK_LINE = /^lock:.*\s([0-9a-f]+):([0-9a-f]+):(\d+) (\d+) (\d+|EOF)$/gm

/** Programs that run others: what they run is the better name. */
const INTERPRETER = /^(node|nodejs|python[0-9.]*|perl|sh|bash)$/

interface File {
  readonly path: string
  readonly device: number
  readonly inode: number
}

/** The program that holds a lock on `byte` of the open file, such as `qemu-nbd (pid 4711)`; undefined if unknown. */
export function lockHolder(fd: number, path: string, byte: number): string | undefined {
  try {
    const { dev, ino } = fstatSync(fd)
    const file = { path: realpathSync(path), device: dev, inode: ino }
    for (const pid of readdirSync('/proc')) {
      if (/^\d+$/.test(pid) && holds(pid, file, byte, fd)) return `${commandOf(pid)} (pid ${pid})`
    }
  } catch {
    // No /proc, or the file's name is gone: the message then does without.
  }
  return undefined
}

function holds(pid: string, file: File, byte: number, ownFd: number): boolean {
  try {
    return readdirSync(`/proc/${pid}/fdinfo`).some(
      (fd) => !(Number(pid) === process.pid && Number(fd) === ownFd) && descriptorHolds(pid, fd, file, byte),
    )
  } catch {
    return false
  }
}

function descriptorHolds(pid: string, fd: string, file: File, byte: number): boolean {
  try {
    const text = readFileSync(`/proc/${pid}/fdinfo/${fd}`, 'latin1')
    for (const [, major, minor, inode, first, last] of text.matchAll(LOCK_LINE)) {
      if (Number(inode) !== file.inode || Number(first) > byte || (last !== 'EOF' && Number(last) < byte)) continue
      // btrfs and overlayfs show another device number here than fstat does; there the name decides.
      if (deviceNumber(major!, minor!) === file.device) return true
      if (readlinkSync(`/proc/${pid}/fd/${fd}`) === file.path) return true
    }
  } catch {
    // The process, or its descriptor, has just gone.
  }
  return false
}

/** A device number as fstat has it: glibc's makedev. */
function deviceNumber(majorHex: string, minorHex: string): number {
  const major = BigInt(`0x${majorHex}`)
  const minor = BigInt(`0x${minorHex}`)
  const low = (minor & 0xffn) | ((major & 0xfffn) << 8n)
  return Number(low | ((minor & ~0xffn) << 12n) | ((major & ~0xfffn) << 32n))
}

function commandOf(pid: string): string {
  const words = readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0')
  const program = basename(words[0] ?? '')
  const script = words.slice(1).find((word) => word !== '' && !word.startsWith('-'))
  if (INTERPRETER.test(program) && script !== undefined) return basename(script, '.js')
  return program || readFileSync(`/proc/${pid}/comm`, 'utf8').trim()
}
