/**
 * Loop devices over the disk.raw of a mount: attaching, who uses one, detaching.
 *
 * None of this may run in the process that serves the mount: were that killed in the middle, it would wait for answers
 * of its own. The server starts `loop-main.ts` for it.
 */

import { closeSync, constants, openSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { addDevicePartition, clearLoop, configureLoop, freeLoop, LoopFlag } from '../native/loop.js'
import type { Partition } from '../partitions/partition.js'
import { fromSystem, VdiskError } from '../util/errors.js'
import { link, list, read } from './look.js'
import { isWithin, mounts } from './mounts.js'
import { describeProcess } from './processes.js'

const CONTROL = '/dev/loop-control'
/** The device that is free is not any more when somebody else was faster. */
const TRIES = 64

export interface LoopRequest {
  /** Absolute path of the file. */
  readonly file: string
  readonly readOnly: boolean
  /** Bytes of a sector. */
  readonly sectorSize: number
  /** What the device is to show as partitions, where the kernel does not find them itself. */
  readonly partitions: readonly Partition[]
}

/**
 * Attaches a loop device to a file, with direct I/O where that works.
 * @param warn is told of partitions that the kernel refuses
 * @returns `/dev/loopN`
 * @throws VdiskError; nothing is attached then.
 */
export function attachLoop(request: LoopRequest, warn: (text: string) => void): string {
  const { file, readOnly } = request
  const fd = open(file, readOnly ? constants.O_RDONLY : constants.O_RDWR)
  try {
    const control = open(CONTROL, constants.O_RDWR)
    try {
      return configureFree(control, fd, request, warn)
    } finally {
      closeSync(control)
    }
  } finally {
    closeSync(fd)
  }
}

function open(path: string, flags: number): number {
  try {
    return openSync(path, flags)
  } catch (error) {
    throw fromSystem(error, path, 'open')
  }
}

function configureFree(control: number, file: number, request: LoopRequest, warn: (text: string) => void): string {
  const { readOnly, sectorSize, file: path, partitions } = request
  const flags = LoopFlag.PARTSCAN | LoopFlag.DIRECT_IO | (readOnly ? LoopFlag.READ_ONLY : 0)
  for (let tries = 0; ; tries++) {
    let device = CONTROL
    try {
      device = `/dev/loop${freeLoop(control)}`
      const fd = openSync(device, readOnly ? constants.O_RDONLY : constants.O_RDWR)
      try {
        configureLoop(fd, file, flags, sectorSize, path)
        addPartitions(device, fd, partitions, warn)
        return device
      } finally {
        closeSync(fd)
      }
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException
      if (code === 'EBUSY' && tries < TRIES) continue
      throw fromSystem(error, device, 'attach')
    }
  }
}

/** Adds what the table says, unless the kernel has read it itself. */
function addPartitions(device: string, fd: number, wanted: readonly Partition[], warn: (text: string) => void): void {
  if (wanted.length === 0 || partitionDevices(device).length > 0) return
  for (const { number, start, size } of wanted)
    try {
      addDevicePartition(fd, number, start, size)
    } catch (error) {
      warn(`${device}: the kernel refuses partition ${number} (${(error as NodeJS.ErrnoException).code})`)
    }
}

const nameOf = (device: string) => device.slice('/dev/'.length)

/** The partitions of a device that the kernel knows, such as `/dev/loop0p1`. */
export function partitionDevices(device: string): string[] {
  const name = nameOf(device)
  return list(`/sys/block/${name}`)
    .filter((entry) => entry.startsWith(`${name}p`))
    .map((entry) => `/dev/${entry}`)
}

/** The device of a partition. */
export const partitionDevice = (device: string, number: number): string => `${device}p${number}`

/** The file that a loop device shows; undefined where it shows none. */
export function backingFile(device: string): string | undefined {
  return read(`/sys/block/${nameOf(device)}/loop/backing_file`)
}

/** True where `text` can be the name of a loop device. */
export const isLoopDevice = (text: string): boolean => /^\/dev\/loop\d+$/.test(text)

/** The loop devices over files of a mount. */
export function loopsOn(mountpoint: string): string[] {
  return list('/sys/block')
    .filter((name) => name.startsWith('loop'))
    .map((name) => `/dev/${name}`)
    .filter((device) => isOn(device, mountpoint))
}

/** True where a loop device shows a file of a mount, and not by now one of somebody else. */
export function isOn(device: string, mountpoint: string): boolean {
  const file = backingFile(device)
  return file !== undefined && isWithin(file, mountpoint)
}

/** Who uses a loop device or a partition of it, one text each, such as `/dev/loop0p1 is mounted on /mnt`. */
export function usersOf(device: string): string[] {
  const devices = [device, ...partitionDevices(device)]
  return [
    ...mounts()
      .filter(({ source }) => devices.includes(source))
      .map(({ source, mountpoint }) => `${source} is mounted on ${mountpoint}`),
    ...swapAreas()
      .filter((path) => devices.includes(path))
      .map((path) => `${path} is swap space`),
    ...devices.flatMap((path) => holdersOf(device, path).map((holder) => `${path} is part of ${holder}`)),
    ...openers(devices),
  ]
}

function swapAreas(): string[] {
  return (read('/proc/swaps') ?? '').split('\n').map((line) => line.split(/\s/)[0]!)
}

/** Devices of the device mapper, md and the like that are built on one. */
function holdersOf(whole: string, device: string): string[] {
  const folder = device === whole ? nameOf(whole) : join(nameOf(whole), nameOf(device))
  return list(`/sys/block/${folder}/holders`).map((name) => `/dev/${name}`)
}

function openers(devices: readonly string[]): string[] {
  return list('/proc')
    .filter((name) => /^\d+$/.test(name) && Number(name) !== process.pid)
    .flatMap((pid) => {
      const opened = list(`/proc/${pid}/fd`)
        .map((fd) => link(`/proc/${pid}/fd/${fd}`))
        .find((path) => path !== undefined && devices.includes(path))
      return opened === undefined ? [] : [`${describeProcess(Number(pid))} has ${opened} open`]
    })
}

/** A device that was only just let go of, and udev's looks at it, are waited for. */
const PATIENCE_MS = 2000
const INTERVAL_MS = 20

/**
 * Detaches a loop device, if it shows a file of this mount. Returns when it has let go of that.
 * @param force also where it is used: who uses it gets errors when the mount has ended
 * @throws IN_USE, saying who uses it; nothing has changed then.
 */
export async function detachLoop(device: string, mountpoint: string, force = false): Promise<void> {
  const until = Date.now() + PATIENCE_MS
  while (isOn(device, mountpoint)) {
    if (tryDetach(device, force) && (force || !isOn(device, mountpoint))) return
    if (Date.now() >= until) {
      const users = usersOf(device)
      throw new VdiskError('IN_USE', `${device} is in use: ${users.join(', ') || 'by whom cannot be seen'}`)
    }
    await sleep(INTERVAL_MS)
  }
}

/** @returns false where it is used */
function tryDetach(device: string, force: boolean): boolean {
  if (!force && usersOf(device).length > 0) return false
  let fd: number
  try {
    // Fails where it is mounted, also out of our sight, and keeps others from mounting it meanwhile.
    fd = openSync(device, force ? constants.O_RDONLY : constants.O_RDONLY | constants.O_EXCL)
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'EBUSY') return false
    if (code === 'ENXIO' || code === 'ENOENT') return true
    throw fromSystem(error, device, 'detach')
  }
  try {
    clearLoop(fd)
    return true
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENXIO') return true
    throw fromSystem(error, device, 'detach')
  } finally {
    closeSync(fd)
  }
}
