package check

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
)

// delivered checks that every receiver got every step, those of an instance for the first time in the order of their
// versions, and nothing that was never committed; and that ids name what they say.
//
// A loss takes steps that were already told. Messages of such steps have an older epoch and, in a stream, a position
// beyond the last one that the epochs have in common; a stream that got one must be told so, and then gets
// everything behind that position. A step that the loss has spared may have lost its position only: it then comes again
// in the new epoch.
func delivered(x *index, out *reporter) {
	d := deliveries{
		index: x, out: out,
		places: map[stepID]int{}, contents: make([]content, len(x.Steps)),
		messages: map[string]*message{}, receivers: map[string]*receiver{},
		webhooks: map[receipt]string{}, receipts: map[string]receipt{},
	}
	for i, s := range x.Steps {
		d.places[stepID{s.Instance, s.Version}] = i
		d.contents[i] = contentOf(s)
	}
	for _, r := range x.Receivers {
		d.receiver(r.Name)
	}
	for i := range x.Received {
		d.take(&x.Received[i])
	}
	for _, r := range x.Receivers {
		at := d.receivers[r.Name]
		for i := range x.Steps {
			if s := &x.Steps[i]; !at.got[i] && !s.At.Before(r.Since) {
				after := ""
				if at.told != "" && s.Position > 0 {
					after = " after steps-lost with the last common id " + at.told
				}
				out.add("instance %s: %s never got %s%s", s.Instance, r.Name, s, after)
			}
		}
	}
	for _, name := range d.names {
		if m := d.receivers[name].beyond; m != nil {
			out.add("instance %s: %s got version %d with the id %s, beyond the last common position %d, and was never told steps-lost",
				m.Instance, name, m.Version, m.ID, d.common(m.ID))
		}
	}
}

type deliveries struct {
	*index
	out       *reporter
	places    map[stepID]int // In Run.Steps.
	contents  []content      // Of Run.Steps.
	messages  map[string]*message
	receivers map[string]*receiver
	names     []string // Of receivers, as they came.
	webhooks  map[receipt]string
	receipts  map[string]receipt
}

type stepID struct {
	instance uuid.UUID
	version  int64
}

// A receipt is a message as one receiver knows it.
type receipt struct{ receiver, id string }

// A receiver is how far one has come.
type receiver struct {
	got    []bool              // By the place in Run.Steps.
	latest map[uuid.UUID]int64 // The highest version that came.
	beyond *Received           // Came with a position that a loss has taken, of which the receiver was not told yet.
	told   string              // The last common id that it was told.
}

// A message is what an id names. step is negative if history does not have it.
type message struct {
	stepID
	content  content
	instance json.RawMessage   // After the step; only a CloudEvent has it.
	raw      []json.RawMessage // The texts that say so.
	step     int
}

func (d *deliveries) receiver(name string) *receiver {
	r := d.receivers[name]
	if r == nil {
		r = &receiver{got: make([]bool, len(d.Steps)), latest: map[uuid.UUID]int64{}}
		d.receivers[name] = r
		d.names = append(d.names, name)
	}
	return r
}

func (d *deliveries) take(m *Received) {
	r := d.receiver(m.Receiver)
	if m.Lost {
		r.beyond, r.told = nil, m.LastCommon
		_, position, ok := Place(m.LastCommon)
		if !ok {
			d.out.add("%s was told steps-lost with the last common id %q, which is no epoch.position", m.Receiver, m.LastCommon)
		}
		for i := range d.Steps {
			if d.Steps[i].Position > position {
				r.got[i] = false
			}
		}
		clear(r.latest)
		return
	}
	named := d.named(m)
	if m.WebhookID != "" {
		d.webhook(m)
	}
	if d.isBeyond(m.ID) {
		r.beyond = m
	}
	if named.step < 0 {
		return
	}
	if s := &d.Steps[named.step]; !r.got[named.step] {
		r.got[named.step] = true
		if latest := r.latest[s.Instance]; s.Version < latest {
			d.out.add("instance %s: %s got %s for the first time after version %d, expected before", s.Instance, m.Receiver, s, latest)
		}
		r.latest[s.Instance] = max(r.latest[s.Instance], s.Version)
	}
}

// named returns what the id of a message names. Each id is compared with history once, and each text of it with
// what the id named before. If it then names something else, the message counts for what it says.
func (d *deliveries) named(m *Received) *message {
	was := d.messages[m.ID]
	if was != nil && was.stepID == (stepID{m.Instance, m.Version}) &&
		slices.ContainsFunc(was.raw, func(raw json.RawMessage) bool { return bytes.Equal(raw, m.Data) }) {
		return was
	}
	now := &message{stepID: stepID{m.Instance, m.Version}, raw: []json.RawMessage{m.Data}}
	now.content, now.instance = contentIn(m.Data)
	switch {
	case was == nil:
		d.messages[m.ID] = now
	case was.stepID != now.stepID:
		d.out.add("instance %s: %s got version %d with the id %s, which also names instance %s, version %d",
			m.Instance, m.Receiver, m.Version, m.ID, was.instance, was.version)
	case was.content != now.content:
		d.out.add("instance %s: %s got version %d with the id %s as %v, but the id also names %v",
			m.Instance, m.Receiver, m.Version, m.ID, now.content, was.content)
	case was.instance != nil && now.instance != nil && !same(was.instance, now.instance):
		d.out.add("instance %s: %s got version %d with the id %s and the instance %s, but before with %s",
			m.Instance, m.Receiver, m.Version, m.ID, now.instance, was.instance)
	default: // An instance's stream and a webhook have one id for two kinds of text.
		was.raw = append(was.raw, m.Data)
		return was
	}
	now.step = d.compare(m, now.content)
	return now
}

// compare returns the place of a message's step in history; negative if history does not have it.
func (d *deliveries) compare(m *Received, got content) int {
	if want := cloudEventID(m); isCloudEventID(m.ID) && m.ID != want {
		d.out.add("instance %s: %s got version %d of epoch %d with the id %s, expected %s", m.Instance, m.Receiver, m.Version, m.Epoch, m.ID, want)
	}
	i, there := d.places[stepID{m.Instance, m.Version}]
	if there && got == d.contents[i] {
		d.place(m, &d.Steps[i])
		return i
	}
	if d.taken(m) {
		return -1
	}
	if there {
		d.out.add("instance %s: %s got version %d with the id %s as %v, but history has %v", m.Instance, m.Receiver, m.Version, m.ID, got, d.contents[i])
	} else {
		d.out.add("instance %s: %s got version %d with the id %s, which was never committed: %v", m.Instance, m.Receiver, m.Version, m.ID, got)
	}
	return -1
}

// place compares the place that a message says with that of its step. A stream names a position that epochs have in
// common by the epoch in which it is read, a CloudEvent by the one in which the step got it.
func (d *deliveries) place(m *Received, s *Step) {
	if s.Position == 0 || m.Epoch == 0 || m.Epoch < s.Epoch && d.taken(m) {
		return
	}
	_, position, ofStream := Place(m.ID)
	if ofStream && position != s.Position {
		d.out.add("instance %s: %s got version %d with the id %s, but its position is %d", m.Instance, m.Receiver, m.Version, m.ID, s.Position)
	}
	latest := s.Epoch
	if ofStream && len(d.Epochs) > 0 {
		latest = d.Epochs[len(d.Epochs)-1].Epoch
	}
	if m.Epoch < s.Epoch || m.Epoch > latest {
		d.out.add("instance %s: %s got version %d of epoch %d with the id %s, but it has its position in epoch %d",
			m.Instance, m.Receiver, m.Version, m.Epoch, m.ID, s.Epoch)
	}
}

// taken reports whether a loss may have taken the step, or the position, of a message. What a crash takes had no
// position yet, so nobody was told of it.
func (d *deliveries) taken(m *Received) bool {
	for _, l := range d.Losses {
		if l.AsyncOnly {
			continue
		}
		if len(d.Epochs) == 0 {
			return true
		}
		_, _, ofStream := Place(m.ID)
		return m.Epoch < d.Epochs[len(d.Epochs)-1].Epoch && (!ofStream || d.isBeyond(m.ID))
	}
	return false
}

// common is the last position that the epoch of a stream's id has in common with the next; negative if it has none.
func (d *deliveries) common(id string) int64 {
	epoch, _, ok := Place(id)
	if !ok {
		return -1
	}
	common := int64(-1)
	for _, e := range d.Epochs {
		if e.Epoch > epoch && (common < 0 || e.FirstPosition < common) {
			common = e.FirstPosition
		}
	}
	return common
}

// isBeyond reports whether an id is of a stream, and of a position that a later epoch has not.
func (d *deliveries) isBeyond(id string) bool {
	_, position, ok := Place(id)
	common := d.common(id)
	return ok && common >= 0 && position > common
}

// webhook checks that webhook-id is one to one with the message and its receiver.
func (d *deliveries) webhook(m *Received) {
	key := receipt{m.Receiver, m.ID}
	if was, there := d.webhooks[key]; there && was != m.WebhookID {
		d.out.add("instance %s: %s got version %d with webhook-id %s, before with %s", m.Instance, m.Receiver, m.Version, m.WebhookID, was)
	}
	d.webhooks[key] = m.WebhookID
	if was, there := d.receipts[m.WebhookID]; there && was != key {
		d.out.add("instance %s: %s got version %d with webhook-id %s, which %s got with the message %s",
			m.Instance, m.Receiver, m.Version, m.WebhookID, was.receiver, was.id)
	}
	d.receipts[m.WebhookID] = key
}

// Place reads an id of a tenant's stream: epoch.position.
func Place(id string) (epoch, position int64, ok bool) {
	before, after, found := strings.Cut(id, ".")
	if !found {
		return 0, 0, false
	}
	epoch, err1 := strconv.ParseInt(before, 10, 64)
	position, err2 := strconv.ParseInt(after, 10, 64)
	return epoch, position, err1 == nil && err2 == nil
}

// A content is what a message says of its step.
type content struct {
	Version                            int64
	Kind, Event, From, To, Status, Key string
	Context, Payload                   string
	At                                 int64 // Microseconds.
}

func (c content) String() string {
	return fmt.Sprintf("%s at %s from %q to %q, %s, with %s and the payload %s",
		&Step{Version: c.Version, Kind: c.Kind, Event: c.Event, Key: c.Key}, clock(time.UnixMicro(c.At)), c.From, c.To, c.Status, c.Context, c.Payload)
}

func contentOf(s Step) content {
	return content{
		Version: s.Version, Kind: s.Kind, Event: s.Event, From: s.From, To: s.To, Status: s.Status, Key: s.Key,
		Context: Canonical(s.Context), Payload: Canonical(s.Payload), At: s.At.UnixMicro(),
	}
}

// contentIn reads the data of a message.
func contentIn(data json.RawMessage) (_ content, instance json.RawMessage) {
	var s struct {
		Version                            int64
		Kind, Event, From, To, Status, Key string
		Context, Payload                   json.RawMessage
		At                                 time.Time
		Instance                           json.RawMessage
	}
	if json.Unmarshal(data, &s) != nil {
		return content{}, nil
	}
	return contentOf(Step{
		Version: s.Version, Kind: s.Kind, Event: s.Event, From: s.From, To: s.To, Status: s.Status, Key: s.Key,
		Context: s.Context, Payload: s.Payload, At: s.At,
	}), s.Instance
}

// cloudEventID is the id that the CloudEvent of a message must have.
func cloudEventID(m *Received) string {
	id := m.Instance.String() + ":" + strconv.FormatInt(m.Version, 10)
	if m.Epoch > 1 {
		id += "@" + strconv.FormatInt(m.Epoch, 10)
	}
	return id
}

// isCloudEventID tells the id of a CloudEvent from one of a stream.
func isCloudEventID(id string) bool {
	instance, _, found := strings.Cut(id, ":")
	_, err := uuid.Parse(instance)
	return found && err == nil
}
