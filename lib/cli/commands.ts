/** The table of commands: what the help says of each, and where its code is. */

import type { Arguments } from './arguments.js'
import type { Io } from './io.js'
import type { CommandName } from './options.js'

export interface Positional {
  readonly name: string
  readonly optional?: boolean
  /** All that it can be, where these are few words. */
  readonly choices?: readonly string[]
  readonly help: string
}

/** The code of a command: `run` returns the exit code, or throws. */
export interface CommandModule {
  run(args: Arguments, io: Io): number | Promise<number>
  /** What the help says behind the options. */
  details?(): string
}

export interface Command {
  readonly name: CommandName
  /** One line. */
  readonly summary: string
  readonly positionals: readonly Positional[]
  readonly examples: readonly string[]
  load(): Promise<CommandModule>
}

const IMAGE: Positional = { name: 'IMAGE', help: 'the image file' }
const MOUNTPOINT: Positional = { name: 'MOUNTPOINT', help: 'a folder' }

export const COMMANDS: readonly Command[] = [
  {
    name: 'mount',
    summary: 'show an image as one flat file, MOUNTPOINT/disk.raw',
    positionals: [IMAGE, MOUNTPOINT],
    examples: ['mount disk.vhd /mnt/x', 'mount -r --format raw disk.img /mnt/x'],
    load: () => import('./commands/mount.js'),
  },
  {
    name: 'umount',
    summary: 'end a mount; returns when the image is committed and closed',
    positionals: [MOUNTPOINT],
    examples: ['umount /mnt/x'],
    load: () => import('./commands/umount.js'),
  },
  {
    name: 'attach',
    summary: 'make an image a loop device with its partitions; prints its name',
    positionals: [IMAGE],
    examples: ['attach disk.vhd', 'attach -r --json disk.vhd'],
    load: () => import('./commands/attach.js'),
  },
  {
    name: 'detach',
    summary: 'end what attach made; returns when the image is committed and closed',
    positionals: [{ name: 'DEVICE', help: 'the loop device, or the image' }],
    examples: ['detach /dev/loop0', 'detach disk.vhd'],
    load: () => import('./commands/detach.js'),
  },
  {
    name: 'list',
    summary: 'what is mounted',
    positionals: [{ ...MOUNTPOINT, optional: true }],
    examples: ['list', 'list --stats /mnt/x', 'list --json'],
    load: () => import('./commands/list.js'),
  },
  {
    name: 'info',
    summary: 'the facts about an image',
    positionals: [IMAGE],
    examples: ['info disk.vhd', 'info --chain --json disk.vhd'],
    load: () => import('./commands/info.js'),
  },
  {
    name: 'map',
    summary: 'which parts of the disk are where',
    positionals: [IMAGE],
    examples: ['map disk.vhd', 'map --json disk.vhd'],
    load: () => import('./commands/map.js'),
  },
  {
    name: 'create',
    summary: 'make an empty image',
    positionals: [
      { name: 'IMAGE', help: 'the image to make; it must not exist' },
      { name: 'SIZE', optional: true, help: 'such as 512M or 1.5T; without it, the size of the parent' },
    ],
    examples: ['create -f vhd disk.vhd 20G', 'create -f vhd -b base.vhd child.vhd'],
    load: () => import('./commands/create.js'),
  },
  {
    name: 'check',
    summary: 'look for faults in an image, and mend them',
    positionals: [IMAGE],
    examples: ['check disk.hds', 'check --repair all disk.hds'],
    load: () => import('./commands/check.js'),
  },
  {
    name: 'bitmap',
    summary: 'dirty bitmaps: what was changed since a backup',
    positionals: [
      {
        name: 'ACTION',
        choices: ['list', 'extents', 'add', 'clear', 'remove'],
        help: 'list, extents, add, clear, remove',
      },
      IMAGE,
      { name: 'NAME', optional: true, help: 'the bitmap; list needs none, add may choose one' },
    ],
    examples: ['bitmap list disk.hds', 'bitmap extents --json disk.hds NAME', 'bitmap add -g 64K disk.hds'],
    load: () => import('./commands/bitmap.js'),
  },
  {
    name: 'snapshot',
    summary: 'snapshots inside an image',
    positionals: [
      {
        name: 'ACTION',
        choices: ['list', 'create', 'apply', 'delete'],
        help: 'list; create one of the disk as it is; apply: go back to one; delete one',
      },
      IMAGE,
      { name: 'NAME', optional: true, help: 'the snapshot, by its name or id; list needs none' },
    ],
    examples: ['snapshot list disk.qcow2', 'snapshot create disk.qcow2 before-update', 'snapshot apply disk.qcow2 1'],
    load: () => import('./commands/snapshot.js'),
  },
  {
    name: 'resize',
    summary: 'give an image another size',
    positionals: [IMAGE, { name: 'SIZE', help: 'the new size, or the change with a sign: +10G, -512M' }],
    examples: ['resize disk.hds 200G', 'resize disk.hds +37M', 'resize --shrink disk.hds -1G'],
    load: () => import('./commands/resize.js'),
  },
  {
    name: 'completion',
    summary: 'the completion script for a shell',
    positionals: [{ name: 'SHELL', choices: ['bash', 'zsh', 'fish'], help: 'bash, zsh or fish' }],
    examples: ['completion bash', 'completion zsh'],
    load: () => import('./commands/completion.js'),
  },
]
