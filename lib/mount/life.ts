/**
 * A mount while it can be used, and its end. Everything that ends it goes one way: `umount`, by whomever, and a signal
 * both end the connection; then no request is under way any more, what was written is committed, the image closed, and
 * the entry in the registry removed.
 */

import { setTimeout as sleep } from 'node:timers/promises'
import type { Image } from '../image/image.js'
import { WaitedTooLong } from '../metadata/lock.js'
import { VdiskError } from '../util/errors.js'
import { ENDING_SIGNALS } from '../util/signals.js'
import { makeTrace } from '../util/trace.js'
import type { Attachment } from './attachment.js'
import { describePlaces, placeOf } from './places.js'
import { type RegistryEntry, remove, update } from './registry.js'
import type { Listener } from './server.js'
import { answerStatistics, describeStatistics, STATISTICS_SIGNAL } from './statistics.js'
import type { MountTransport, Serving } from './transports.js'
import type { TreeSettings } from './tree.js'
import { unmountOrSay } from './unmount.js'

const trace = makeTrace('mount')

/** What is written is committed after this time at the latest. */
const COMMIT_INTERVAL = 5_000
/** After so long in which a connection did not end, it is looked at who has it. */
const END_PATIENCE = 5_000

export class LiveMount {
  readonly #image: Image
  readonly #transport: MountTransport
  readonly #listener: Listener
  readonly #attachment: Attachment | undefined
  readonly #onSignal = (signal: NodeJS.Signals) => void this.#end(signal)
  readonly #onQuestion = () => this.#report()
  readonly #onError = (error: unknown) => this.#internalError(error)
  #entry: RegistryEntry
  #since = 0
  #serving: Serving | undefined
  /** Somebody asked for the end; before it could be used, where there is no `#serving`. */
  #ending: string | undefined
  #ended = false
  /** Why it did not end when it was asked to. */
  #obstacle: string | undefined
  /** Why the last commit did not work. */
  #failure: unknown
  /** Why the mount ended, where nobody asked for it. */
  #broken: unknown

  /** @param attachment the loop device that the mount is there for */
  constructor(
    entry: RegistryEntry,
    image: Image,
    transport: MountTransport,
    listener: Listener,
    attachment?: Attachment,
  ) {
    this.#entry = entry
    this.#image = image
    this.#transport = transport
    this.#listener = listener
    this.#attachment = attachment
  }

  /** Mounts and starts to serve. @throws VdiskError; nothing is mounted then, and the image is left open. */
  async begin(tree: TreeSettings): Promise<void> {
    const { mountpoint, options } = this.#entry
    // From before the mount on, so that a signal cannot leave it behind without its server.
    for (const signal of ENDING_SIGNALS) process.on(signal, this.#onSignal)
    process.on(STATISTICS_SIGNAL, this.#onQuestion)
    process.on('uncaughtException', this.#onError)
    try {
      const serving = await this.#transport.serve({
        image: this.#image,
        mountpoint,
        options,
        tree,
        workerDied: (thread, reason) => this.#workerDied(thread, reason),
      })
      const loop = await this.#attach(serving)
      this.#serving = serving
      const { notice, device, transport = options.transport } = serving
      if (notice) this.#listener.warning(notice)
      this.#entry = { ...this.#entry, loop, device, phase: 'mounted', options: { ...options, transport } }
    } catch (error) {
      this.#unlisten()
      throw error
    }
  }

  /** Attaches the loop device, if there is to be one. Where that fails, nothing is mounted any more. */
  async #attach(serving: Serving): Promise<string | undefined> {
    try {
      return await this.#attachment?.attach(this.#listener.warning)
    } catch (error) {
      const { device } = serving
      await this.#transport.unmount(this.#entry.mountpoint, { force: true, lazy: true, device }).catch(() => {})
      await serving.ended.catch(() => {})
      throw error
    }
  }

  /**
   * Says that the files can be used, and returns when the image is committed and closed.
   * @throws VdiskError where that failed; the registry keeps it until `umount` has read it.
   */
  async live(): Promise<void> {
    this.#since = Date.now()
    const timer = setInterval(() => this.#tend(), COMMIT_INTERVAL)
    try {
      await this.#announceOrAbort()
      await this.#serving!.ended
    } catch (error) {
      trace('serving ended with %O', error)
      this.#broken ??= error
    }
    this.#ended = true
    clearInterval(timer)
    try {
      this.#close()
    } finally {
      // Not before: a signal would end the process in the middle of the last commit.
      this.#unlisten()
    }
  }

  /** While it is served, the image has to stay open. */
  async #announceOrAbort(): Promise<void> {
    try {
      this.#announce()
    } catch (error) {
      this.#broken = error
      await this.#abort()
    }
  }

  #unlisten(): void {
    for (const signal of ENDING_SIGNALS) process.off(signal, this.#onSignal)
    process.off(STATISTICS_SIGNAL, this.#onQuestion)
    process.off('uncaughtException', this.#onError)
  }

  #announce(): void {
    update(this.#entry)
    const asked = this.#ending
    this.#ending = undefined
    if (asked !== undefined) {
      void this.#end(asked)
      return
    }
    try {
      this.#listener.ready(this.#entry)
    } catch (error) {
      trace('nobody waits for this mount any more: %O', error)
      void this.#end('the end of the mount command')
    }
  }

  /** Somebody wants to know how the mount is doing. Never throws. */
  #report(): void {
    if (!this.#serving) return
    try {
      const metadata = this.#image.statistics()
      const statistics = { seconds: (Date.now() - this.#since) / 1000, ...this.#serving.requests(), metadata }
      if (answerStatistics(this.#entry, statistics)) return
      for (const line of describeStatistics(statistics)) this.#listener.report(line)
    } catch (error) {
      this.#listener.problem(`no statistics: ${oneLine(error)}`)
    }
  }

  #tend(): void {
    this.#commit()
    this.#noteFailure()
    if (this.#attachment?.isGone) void this.#end('the end of its loop device')
  }

  #commit(): void {
    try {
      if (this.#image.unflushed) this.#image.flush()
      this.#failure = undefined
    } catch (error) {
      // Another thread's commit takes its time: nothing is wrong, and this is tried again.
      if (error instanceof WaitedTooLong) return
      // The first of several says why; the later ones, that it did.
      if (this.#failure === undefined) this.#listener.problem(oneLine(error))
      this.#failure ??= error
    }
  }

  /** A sync of the image failed, whoever asked for it: the log and the list say why writers get errors from now on. */
  #noteFailure(): void {
    const { failure } = this.#image
    if (failure === undefined || this.#entry.writeError !== undefined) return
    this.#entry = { ...this.#entry, writeError: failure.message }
    this.#listener.problem(`${failure.message}; reads go on`)
    try {
      update(this.#entry)
    } catch (error) {
      this.#listener.problem(oneLine(error))
    }
  }

  /** The image may have been left in the middle of a change; if so, it cannot be committed, and there is no going on. */
  #workerDied(thread: number, reason: Error): void {
    this.#listener.problem(`worker ${thread} died: ${reason.stack ?? reason.message}`)
    this.#image.threadDied(thread)
    this.#commit()
    if (this.#failure !== undefined) void this.#abort()
  }

  /** To let the process exit with a live connection would leave everybody who uses it waiting for ever. */
  #internalError(error: unknown): void {
    this.#listener.problem(`internal error: ${error instanceof Error ? error.stack : error}`)
    this.#broken ??= error
    void this.#end('an internal error')
  }

  /** Commits while everything still works, and ends the connection: if need be, under those who use it. */
  async #end(cause: string): Promise<void> {
    trace('ending: %s', cause)
    if (this.#ending !== undefined || this.#ended) return
    this.#ending = cause
    if (!this.#serving) return
    this.#commit()
    try {
      const place = this.#place()
      if (place !== undefined) await this.#unmount(place, cause)
      if (this.#ending !== undefined) await this.#awaitEnd()
    } catch (error) {
      if (!this.#ended) this.#goOn(oneLine(error))
    }
  }

  /** Where it is mounted now. @throws IN_USE where something is mounted over it */
  #place(): string | undefined {
    const { device, mountpoint } = this.#entry
    return device === undefined ? mountpoint : placeOf(device, mountpoint)
  }

  async #unmount(place: string, cause: string): Promise<void> {
    try {
      await this.#attachment?.detach(false)
      await unmountOrSay(place, this.#transport, this.#entry.device)
    } catch (error) {
      if (this.#ended) return
      this.#listener.problem(`${oneLine(error)}; ended by force, because of ${cause}`)
      await this.#attachment?.detach(true).catch((reason: unknown) => this.#listener.problem(oneLine(reason)))
      await this.#abort()
    }
  }

  /** What is mounted elsewhere too, or still used after it was taken out of the tree, does not end by unmounting. */
  async #awaitEnd(): Promise<void> {
    const ended = this.#serving!.ended.then(
      () => true,
      () => true,
    )
    const late = sleep(END_PATIENCE, false, { ref: false })
    if ((await Promise.race([ended, late])) || this.#ended) return
    const { device, image, mountpoint, options } = this.#entry
    const who = device === undefined ? undefined : describePlaces(device, [image, options.overlay])
    this.#goOn(`${mountpoint} is unmounted, and still in use: ${who ?? 'by whom cannot be seen'}`)
  }

  async #abort(): Promise<void> {
    const { device, mountpoint } = this.#entry
    try {
      const place = this.#place()
      if (place === undefined) throw new VdiskError('NOT_FOUND', `nothing is mounted on ${mountpoint}`)
      await this.#transport.unmount(place, { force: true, lazy: true, device })
    } catch (error) {
      this.#goOn(oneLine(error))
    }
  }

  /** It did not end; the next signal tries again. */
  #goOn(why: string): void {
    // Once, though `#tend` may ask every few seconds.
    if (why !== this.#obstacle) this.#listener.problem(why)
    this.#obstacle = why
    this.#ending = undefined
  }

  /** Commits and closes the image. Leaves the entry behind, with the error, where that fails. */
  #close(): void {
    let failure = this.#broken
    try {
      this.#image.close()
    } catch (error) {
      failure = this.#failure ?? error
    }
    if (failure === undefined) {
      remove(this.#entry)
      return
    }
    const error = oneLine(failure)
    try {
      update({ ...this.#entry, phase: 'ended', error })
    } catch (reason) {
      this.#listener.problem(oneLine(reason))
    }
    throw failure instanceof VdiskError ? failure : new VdiskError('INTERNAL', error, { cause: failure })
  }
}

function oneLine(error: unknown): string {
  return (error instanceof Error ? error.message : String(error)).replace(/\s*[\r\n]+\s*/g, ' ')
}
