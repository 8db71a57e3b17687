/** The loop of one worker: take a request from the device, serve it, answer it, until the file system is unmounted. */

import { constants } from 'node:os'
import { isMainThread, parentPort } from 'node:worker_threads'
import { readNext, writeNext } from '../../native/transfer.js'
import { fromSystem, VdiskError } from '../../util/errors.js'
import { makeTrace, traceAtOnce } from '../../util/trace.js'
import type { FileTree } from '../transport.js'
import type { Negotiated } from './init.js'
import { Linger } from './linger.js'
import { Reply } from './messages.js'
import type { CachePolicy } from './opens.js'
import { FIRST, Parking } from './parking.js'
import { OUT_HEADER_SIZE } from './protocol.js'
import { Session, type SharedState } from './session.js'
import { WorkerSlot, WorkerState } from './slots.js'
import { Splicer } from './splicer.js'
import type { Answer } from './syncs.js'

const trace = makeTrace('transport')

export const DEVICE = '/dev/fuse'

/** What a worker needs to serve, made by the pool; it travels in `workerData.transport`. */
export interface WorkerContext {
  /** The device, mounted and past INIT; open in the whole process. */
  readonly fd: number
  /** From 1 on. */
  readonly thread: number
  readonly negotiated: Negotiated
  readonly shared: SharedState
  readonly slots: SharedArrayBuffer
  readonly parking: SharedArrayBuffer
  readonly cachePolicy: CachePolicy | undefined
}

/** The message that a worker sends when it begins to serve. */
export const SERVING = 'serving'

/**
 * Serves requests on the calling thread, and returns when the file system is unmounted, or the pool needs it no more.
 * Nothing that a request asks for makes it throw.
 * @throws IO where the device itself fails
 */
export function serve(context: WorkerContext, tree: FileTree): void {
  const { fd, thread, negotiated, shared, cachePolicy } = context
  const splicer = Splicer.make(fd)
  const parking = new Parking(context.parking, context.slots)
  const session = new Session({ tree, negotiated, shared, thread, answer: answerOn(fd), cachePolicy, splicer, parking })
  const { request, reply } = session
  const linger = Linger.at(fd)
  const slot = new WorkerSlot(context.slots, thread)
  // A worker's stderr goes through its event loop, which does not turn again before the end.
  if (!isMainThread) traceAtOnce()
  slot.begin()
  parentPort?.postMessage(SERVING)
  let state: number = WorkerState.LEFT
  let answered = performance.now()
  while (!slot.dismissed) {
    linger.wait()
    const length = receive(fd, request.bytes)
    if (length === UNMOUNTED) {
      state = WorkerState.ENDED
      break
    }
    const began = performance.now()
    const waited = linger.took(began - answered)
    slot.take(request.uniqueFirst, request.uniqueSecond, waited)
    const answer = session.handle(length)
    if (answer > 0 && !send(fd, reply.bytes, answer)) send(fd, reply.bytes, session.fail(constants.errno.EIO))
    answered = performance.now()
    session.record(answered - began)
    slot.release()
    if (thread !== FIRST && parking.oneIsEnough) {
      slot.park(true)
      parking.park(fd)
      slot.park(false)
    }
  }
  splicer?.close()
  slot.end(state)
}

const UNMOUNTED = -1

/** What read(2) of the device says where a request vanished before it was taken: there may be another. */
const RETRIED: readonly unknown[] = ['ENOENT', 'EINTR', 'EAGAIN']
/** What it says when there will be no more. */
const ENDED: readonly unknown[] = ['ENODEV', 'ECONNABORTED']

/** Waits for a request. @returns its length, or UNMOUNTED */
function receive(fd: number, buffer: Buffer): number {
  for (;;) {
    try {
      return readNext(fd, buffer)
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException
      if (ENDED.includes(code)) return UNMOUNTED
      if (!RETRIED.includes(code)) throw fromSystem(error, DEVICE, 'read')
    }
  }
}

/**
 * Writes a reply. ENOENT means that its request was given up, and the end of the connection shows at the next read:
 * neither is of interest here.
 * @returns false where the kernel refused the reply as malformed, so that its request still waits
 */
function send(fd: number, reply: Buffer, length: number): boolean {
  try {
    writeNext(fd, reply, length)
    return true
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'EINTR') return send(fd, reply, length)
    trace('reply of %d bytes, errno %d: %s', length, -reply.readInt32LE(4), code)
    return code !== 'EINVAL'
  }
}

/** A function that answers requests with nothing but an errno. */
export function answerOn(fd: number): Answer {
  const reply = new Reply(OUT_HEADER_SIZE)
  return (first, second, errno) => {
    send(fd, reply.bytes, reply.header(OUT_HEADER_SIZE, errno, first, second))
  }
}

/** Reads the kernel's first request; right after mounting it is there already. */
export function receiveFirst(fd: number, buffer: Buffer): number {
  const length = receive(fd, buffer)
  if (length === UNMOUNTED) throw new VdiskError('IO', `${DEVICE} was unmounted before it could be used`)
  return length
}
