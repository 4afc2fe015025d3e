/** The writer and the reader against each other and against bytes that nobody meant. The conformance tests meet another implementation. */

import assert from 'node:assert/strict'
import { test } from 'node:test'

import fc from 'fast-check'

import * as wire from '../src/wire'

const text = fc.string({ unit: 'grapheme', maxLength: 30 })
const pairs = fc.array(fc.tuple(text, fc.option(text)), { maxLength: 8 })
const u32 = fc.integer({ min: 0, max: 0xffffffff })
const bytes = fc.uint8Array({ maxLength: 300 })

function payload(frame: Buffer, kind: number): wire.Table {
  const seen: Buffer[] = []
  new wire.Frames().push(frame, (one, payload) => {
    assert.equal(one, kind)
    seen.push(payload)
  })
  assert.equal(seen.length, 1)
  return wire.Table.root(seen[0])
}

test('a rewrite is read as it was written', () => {
  fc.assert(
    fc.property(u32, fc.option(text), pairs, pairs, pairs, bytes, (id, path, headers, args, respHeaders, body) => {
      const root = payload(wire.rewrite(id, path, headers, args, respHeaders, body), wire.HTTP_REQ_CALL)
      const rewrite = root.table(2)
      assert.deepEqual([root.u32(0), root.u8(1), rewrite?.text(0)], [id, 2, path])
      assert.deepEqual([rewrite?.pairs(1), rewrite?.pairs(2), rewrite?.pairs(3)], [headers, args, respHeaders])
      assert.deepEqual([...(rewrite?.blob(4) ?? [])], [...body])
    }),
  )
})

test('a stop and a response are read as they were written', () => {
  fc.assert(
    fc.property(u32, fc.integer({ min: 1, max: 0xffff }), pairs, bytes, (id, status, headers, body) => {
      const root = payload(wire.stop(id, status, headers, body), wire.HTTP_REQ_CALL)
      const stop = root.table(2)
      assert.deepEqual([root.u32(0), root.u8(1), stop?.u16(0), stop?.pairs(1)], [id, 1, status, headers])
      assert.deepEqual([...(stop?.blob(2) ?? [])], [...body])
      const response = payload(wire.responseChanged(id, status, headers, body), wire.HTTP_RESP_CALL)
      assert.deepEqual([response.u32(0), response.u16(1), response.pairs(2)], [id, status, headers])
      assert.deepEqual([...(response.blob(3) ?? [])], [...body])
    }),
  )
})

test('small messages', () => {
  assert.equal(payload(wire.error(2), wire.ERROR).u8(0), 2)
  assert.equal(payload(wire.confToken(0xffffffff), wire.PREPARE_CONF).u32(0), 0xffffffff)
  assert.equal(payload(wire.requestUnchanged(7), wire.HTTP_REQ_CALL).u32(0), 7)
  assert.equal(payload(wire.responseUnchanged(7), wire.HTTP_RESP_CALL).u32(0), 7)
  const variable = payload(wire.askVariable('hôte'), wire.EXTRA_INFO)
  assert.deepEqual([variable.u8(0), variable.table(1)?.text(0)], [1, 'hôte'])
  assert.equal(payload(wire.ASK_REQUEST_BODY, wire.EXTRA_INFO).u8(0), 2)
  assert.equal(payload(wire.ASK_RESPONSE_BODY, wire.EXTRA_INFO).u8(0), 3)
})

test('what does not fit into a frame', () => {
  assert.throws(() => wire.stop(1, 200, [], Buffer.alloc(wire.MAX_PAYLOAD)), wire.TooLarge)
  assert.equal(payload(wire.stop(1, 200, [], Buffer.alloc(15_000_000)), wire.HTTP_REQ_CALL).table(2)?.blob(2)?.length, 15_000_000)
  assert.equal(payload(wire.requestUnchanged(1), wire.HTTP_REQ_CALL).u32(0), 1)
})

function readEverything(table: wire.Table, depth = 0): void {
  for (let field = 0; field < 8; field++) {
    const reads = [
      () => table.u8(field),
      () => table.u16(field),
      () => table.u32(field),
      () => table.blob(field),
      () => table.text(field),
      () => table.pairs(field),
      () => {
        const child = depth < 2 ? table.table(field) : null
        if (child !== null) readEverything(child, depth + 1)
      },
    ]
    for (const read of reads) orBadBuffer(read)
  }
}

function orBadBuffer(read: () => unknown): void {
  try {
    read()
  } catch (error) {
    if (!(error instanceof wire.BadBuffer)) throw error
  }
}

test('any bytes are read or refused', () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 120 }), (noise) => orBadBuffer(() => readEverything(wire.Table.root(Buffer.from(noise))))),
  )
})

test('a damaged message is read or refused', () => {
  const good = wire.rewrite(1, '/p', [['a', 'b'], ['c', null]], [['d', 'e']], [], Buffer.from('body')).subarray(4)
  const change = fc.tuple(fc.integer({ min: 0, max: good.length - 1 }), fc.integer({ min: 0, max: 255 }))
  fc.assert(
    fc.property(fc.array(change, { maxLength: 4 }), fc.integer({ min: 0, max: good.length }), (changes, length) => {
      const damaged = Buffer.from(good)
      for (const [place, byte] of changes) damaged[place] = byte
      orBadBuffer(() => readEverything(wire.Table.root(damaged.subarray(0, length))))
    }),
    { numRuns: 500 },
  )
})

test('frames in any pieces', () => {
  const frame = fc.tuple(fc.integer({ min: 0, max: 255 }), fc.uint8Array({ maxLength: 70_000 }))
  fc.assert(
    fc.property(fc.array(frame, { maxLength: 5 }), fc.array(fc.integer({ min: 1, max: 40_000 }), { maxLength: 20 }), (frames, cuts) => {
      const stream = Buffer.concat(
        frames.map(([kind, bytes]) => {
          const head = Buffer.alloc(4)
          head.writeUInt32BE(((kind << 24) | bytes.length) >>> 0)
          return Buffer.concat([head, bytes])
        }),
      )
      const seen: [number, string][] = []
      const reader = new wire.Frames()
      let begin = 0
      for (const cut of [...cuts, stream.length]) {
        const piece = stream.subarray(begin, begin + cut)
        begin += piece.length
        reader.push(piece, (kind, payload) => seen.push([kind, payload.toString('base64')]))
      }
      assert.deepEqual(seen, frames.map(([kind, bytes]) => [kind, Buffer.from(bytes).toString('base64')]))
    }),
    { numRuns: 60 },
  )
})
