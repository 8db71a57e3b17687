/**
 * Loop devices and the partitions of block devices: the ioctls of <linux/loop.h> and <linux/blkpg.h>. All throw a
 * SystemCallError and say nothing about paths.
 */

import { uninterrupted } from './files.js'
import { addressOf, ioctl } from './libc.js'

const LOOP_CLR_FD = 0x4c01
const LOOP_CONFIGURE = 0x4c0a
const LOOP_CTL_GET_FREE = 0x4c82

/** LO_FLAGS_ */
export const LoopFlag = { READ_ONLY: 1, AUTOCLEAR: 4, PARTSCAN: 8, DIRECT_IO: 16 } as const

/** struct loop_config: u32 fd, u32 block size, struct loop_info64, eight reserved u64. */
const LOOP_CONFIG_BYTES = 304
const CONFIG_BLOCK_SIZE = 4
/** In loop_info64, which begins at byte 8. */
const CONFIG_FLAGS = 8 + 52
const CONFIG_FILE_NAME = 8 + 56
const FILE_NAME_BYTES = 64

/** The number of a loop device that is free at this moment. @param control descriptor of /dev/loop-control */
export function freeLoop(control: number): number {
  return uninterrupted(() => ioctl(control, LOOP_CTL_GET_FREE, null))
}

/**
 * Makes a loop device show a file; since Linux 5.8.
 * @param device descriptor of /dev/loopN
 * @param file descriptor of the file
 * @param name what programs show that read it from the device's status; the system knows the file's path anyway
 * @throws EBUSY where somebody else was faster
 */
export function configureLoop(device: number, file: number, flags: number, blockSize: number, name: string): void {
  const config = Buffer.alloc(LOOP_CONFIG_BYTES)
  config.writeUInt32LE(file)
  config.writeUInt32LE(blockSize, CONFIG_BLOCK_SIZE)
  config.writeUInt32LE(flags, CONFIG_FLAGS)
  config.write(name.slice(0, FILE_NAME_BYTES - 1), CONFIG_FILE_NAME, FILE_NAME_BYTES - 1)
  uninterrupted(() => ioctl(device, LOOP_CONFIGURE, config))
}

/** Lets go of the file, at the latest when the last who has the device open closes it. */
export function clearLoop(device: number): void {
  uninterrupted(() => ioctl(device, LOOP_CLR_FD, null))
}

const BLKPG = 0x1269
const BLKPG_ADD_PARTITION = 1

/** struct blkpg_ioctl_arg: i32 op, flags, datalen, padding, pointer to the data. */
const BLKPG_BYTES = 24
const BLKPG_LENGTH = 8
const BLKPG_DATA = 16
/** struct blkpg_partition: i64 start and length in bytes, i32 number, two names of 64 bytes, padding. */
const PARTITION_BYTES = 152
const PARTITION_LENGTH = 8
const PARTITION_NUMBER = 16

/** Tells the kernel of a partition, in bytes. @throws EBUSY where it knows that number, or one that overlaps */
export function addDevicePartition(device: number, number: number, start: number, length: number): void {
  const partition = Buffer.alloc(PARTITION_BYTES)
  partition.writeBigInt64LE(BigInt(start))
  partition.writeBigInt64LE(BigInt(length), PARTITION_LENGTH)
  partition.writeInt32LE(number, PARTITION_NUMBER)
  const argument = Buffer.alloc(BLKPG_BYTES)
  argument.writeInt32LE(BLKPG_ADD_PARTITION)
  argument.writeInt32LE(PARTITION_BYTES, BLKPG_LENGTH)
  argument.writeBigUInt64LE(addressOf(partition), BLKPG_DATA)
  uninterrupted(() => ioctl(device, BLKPG, argument))
}
