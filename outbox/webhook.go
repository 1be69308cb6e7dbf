package outbox

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/queries"
)

// WebhookConfig tunes Webhooks. Its zero value works.
type WebhookConfig struct {
	// MaxAttempts is after how many a delivery is given up. Default 12: with the default
	// Backoff some three hours on the average, if the endpoint does not rest.
	MaxAttempts int
	// Backoff is the longest wait after the first failure. It doubles with each, up to an hour;
	// what is waited is anything up to it. Default 5 s.
	Backoff time.Duration
	// AllowPrivate lets loopback, private, link-local and metadata addresses be endpoints.
	AllowPrivate bool
	// Secret signs the callbacks that brought none.
	Secret string
	// Timeout is how long an attempt may take. Default 15 s.
	Timeout time.Duration
	// Concurrency is how many attempts are under way at once, and PerEndpoint how many of one
	// subscription, or of callbacks to one URL, or to one host. Default 512 and 32. An endpoint
	// begins with two and gets more as it answers, fewer as it fails, and its share of all if
	// there are many.
	Concurrency, PerEndpoint int
	// Rest is the first rest of an endpoint that has failed five times in a row. It doubles with
	// each failed probe, up to 10 minutes. Default 10 s.
	Rest time.Duration
	// KeepDelivered and KeepDead are for how long the log has deliveries. Default 7 and 30 days.
	KeepDelivered, KeepDead time.Duration
	// Page is how many steps are routed at once. Default 1000.
	Page int
	// Poll is the longest time between looks. Default 200 ms.
	Poll time.Duration
	// Lease is for how long a process leads after it last said so. Default 10 s.
	Lease time.Duration
	// Wake, if given, is signalled when there may be something to route.
	Wake <-chan struct{}
	// Logger is told who leads and what fails. Default: nobody.
	Logger *slog.Logger
}

func (c WebhookConfig) withDefaults() WebhookConfig {
	orDefault := func(d *time.Duration, value time.Duration) {
		if *d <= 0 {
			*d = value
		}
	}
	orDefault(&c.Backoff, 5*time.Second)
	orDefault(&c.Timeout, 15*time.Second)
	orDefault(&c.Rest, 10*time.Second)
	orDefault(&c.KeepDelivered, 7*24*time.Hour)
	orDefault(&c.KeepDead, 30*24*time.Hour)
	orDefault(&c.Poll, 200*time.Millisecond)
	orDefault(&c.Lease, 10*time.Second)
	for n, value := range map[*int]int{&c.MaxAttempts: 12, &c.Concurrency: 512, &c.PerEndpoint: 32, &c.Page: 1000} {
		if *n <= 0 {
			*n = value
		}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Webhooks makes deliveries of the steps that subscriptions match, and sends them: those of
// an instance to a subscription in their order, each at least once, with the same id in each
// attempt. Any number of processes may run it; one at a time leads.
//
// What is due is read into memory, some of each subscription, and sent by endpoint. An attempt is
// noted when it has ended, many in one write: until then the database knows nothing of it, so
// that a leader that dies is followed by one that sends the same again.
type Webhooks struct {
	queries *queries.Queries
	config  WebhookConfig
	client  *http.Client
	// steps are routed, and deliveries fetched, at a time.
	steps, fetched pace
}

// NewWebhooks returns Webhooks on a pool, of which they take one connection at a time.
func NewWebhooks(pool *pgxpool.Pool, config WebhookConfig) *Webhooks {
	config = config.withDefaults()
	return &Webhooks{
		queries: queries.New(pool), config: config, client: newWebhookClient(config),
		steps: newPace(config.Page), fetched: newPace(4 * config.Concurrency),
	}
}

// webhooksConsumer is the consumer that routes.
const webhooksConsumer = "webhooks"

// Run routes and delivers until the context ends, and returns nil then. Nothing else ends it.
func (w *Webhooks) Run(ctx context.Context) error {
	defer w.client.CloseIdleConnections()
	// From the first step: what a subscription is not to see, it does not.
	election{
		queries: w.queries, consumer: webhooksConsumer, fromStart: true, lease: w.config.Lease, logger: w.config.Logger,
	}.run(ctx, "delivering webhooks", func(ctx context.Context, term int64, since time.Time) (worked bool, err error) {
		d := newDispatch(w, term, since)
		err = d.run(ctx)
		return d.worked, err
	})
	return nil
}

// dispatch is what Webhooks know during one term. One goroutine owns it; each attempt has
// another.
type dispatch struct {
	*Webhooks
	term    int64
	renewed time.Time
	worked  bool

	lanes map[laneKey]*lane
	hosts map[string]*callbackHost
	// known are all that are in memory, until they are settled.
	known map[uuid.UUID]*job
	// chains are those of them that have an order to keep, in it. The first may be under way;
	// those that have ended are in it no more.
	chains   map[chain][]*job
	inFlight int
	// results come from the attempts; ended are those that were taken, to be settled.
	results chan result
	ended   []result
	sending context.Context
	senders sync.WaitGroup
	// stopping has no attempt begin.
	stopping bool
	// refreshed is when subscriptions were last looked up.
	refreshed time.Time

	// after is the subscription up to which what is due was read.
	afterTenant       string
	afterSubscription uuid.UUID
	nextPurge         time.Time
}

// A chain is what keeps its order: an instance's deliveries to a subscription.
type chain struct {
	tenant                 string
	subscription, instance uuid.UUID
}

// A laneKey is whose attempts go in a lane: a subscription's, or those of callbacks to a URL.
type laneKey struct {
	tenant       string
	subscription uuid.UUID
	url          string
}

// A lane has the attempts of an endpoint, so that no endpoint takes the place of another.
type lane struct {
	ready    []*job
	inFlight int
	// limit is for inFlight.
	limit int
	used  time.Time
	// callbacks is what those share, which have no subscription that would rest.
	callbacks *callbackHost
	health
}

// A callbackHost is what the lanes of callbacks to one host share.
type callbackHost struct {
	name            string
	inFlight, lanes int
	health
}

// A health tells of a callback's URL, or of a host that does not answer.
type health struct {
	failures   int
	restsUntil time.Time
}

func (h *health) failed(rest time.Duration) {
	if time.Now().Before(h.restsUntil) {
		return // What began before says nothing new.
	}
	if h.failures++; h.failures >= 5 {
		h.restsUntil = time.Now().Add(min(rest<<min(h.failures-5, 20), 10*time.Minute))
	}
}

// A job is a delivery in memory.
type job struct {
	delivery queries.Delivery
	lane     laneKey
	message  message
	event    *queries.Event // Nil for a test.
	// begun is set when an attempt is, and over when it has ended.
	begun, over bool
}

func (j *job) chain() (chain, bool) {
	if j.delivery.InstanceID == nil {
		return chain{}, false
	}
	return chain{j.delivery.TenantID, j.delivery.SubscriptionID, *j.delivery.InstanceID}, true
}

// A result is how a job ended, for pawl.settle_deliveries.
type result struct {
	job     *job
	outcome string
	answer  answer
	delay   time.Duration
}

func newDispatch(w *Webhooks, term int64, since time.Time) *dispatch {
	return &dispatch{
		Webhooks: w, term: term, renewed: since, lanes: map[laneKey]*lane{}, hosts: map[string]*callbackHost{}, known: map[uuid.UUID]*job{},
		chains: map[chain][]*job{}, results: make(chan result, w.config.Concurrency),
	}
}

// window is how many deliveries are kept in memory.
func (d *dispatch) window() int { return d.fetched.most }

// share is how many of them may be of one subscription: fewer, the more subscriptions there
// are, so that endpoints that take nothing leave room for others.
func (d *dispatch) share() int {
	subscriptions := map[uuid.UUID]bool{}
	for _, j := range d.known {
		subscriptions[j.delivery.SubscriptionID] = true
	}
	return max(2, d.window()/(4*(max(len(subscriptions), 1)+1)))
}

// grace is how long attempts under way may take to end when the process is to.
const grace = 3 * time.Second

func (d *dispatch) run(ctx context.Context) (err error) {
	var stopSending context.CancelFunc
	d.sending, stopSending = context.WithCancel(context.WithoutCancel(ctx))
	defer d.senders.Wait()
	defer stopSending()
	defer func() {
		if ctx.Err() != nil && err == nil {
			err = d.finish(ctx)
		}
	}()
	timer := time.NewTimer(0)
	defer timer.Stop()
	look := true
	for ctx.Err() == nil {
		if len(d.ended) > 0 {
			if err := d.settle(ctx); err != nil {
				return err
			}
			look = true
		}
		more, routed, err := d.route(ctx)
		if err != nil {
			return err
		}
		if look || routed {
			if look, err = d.fetch(ctx); err != nil {
				return err
			}
		}
		if err := d.refresh(ctx); err != nil {
			return err
		}
		d.start()
		if d.take(); more || len(d.ended) > 0 {
			continue
		}
		if time.Now().After(d.nextPurge) {
			if err := d.purge(ctx); err != nil {
				return err
			}
		}
		timer.Reset(d.config.Poll)
		select {
		case r := <-d.results:
			d.end(r)
			d.take()
		case <-d.config.Wake:
		case <-timer.C:
			look = true
		case <-ctx.Done():
		}
	}
	return nil
}

// finish settles what has ended, and what ends soon after the context has. What is left is
// sent again.
func (d *dispatch) finish(ctx context.Context) error {
	d.stopping = true
	deadline := time.NewTimer(min(grace, d.config.Timeout))
	defer deadline.Stop()
	for waiting := true; waiting && d.inFlight > 0; {
		select {
		case r := <-d.results:
			d.end(r)
		case <-deadline.C:
			waiting = false
		}
	}
	return d.settle(ctx)
}

// take takes the results that are there.
func (d *dispatch) take() {
	for {
		select {
		case r := <-d.results:
			d.end(r)
		default:
			return
		}
	}
}

// call makes a call to the database, no longer than a leader may wait for. Attempts that end
// meanwhile make room for others. The call must not touch what belongs to the dispatch.
func (d *dispatch) call(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), d.config.Lease/2)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	for {
		select {
		case err := <-done:
			return err
		case r := <-d.results:
			d.end(r)
			d.start()
		}
	}
}

// route makes deliveries of the next steps. It says whether there are more, and whether there
// are deliveries.
func (d *dispatch) route(ctx context.Context) (more, routed bool, err error) {
	now := time.Now()
	var r queries.RouteRow
	err = d.call(ctx, func(ctx context.Context) (err error) {
		r, err = d.queries.Route(ctx, queries.RouteParams{
			Term: d.term, RowLimit: int32(d.steps.now), Lease: interval(d.config.Lease),
		})
		return err
	})
	d.steps.after(err)
	switch {
	case err != nil:
		return false, false, fmt.Errorf("route: %w", err)
	case !r.Leads:
		return false, false, errDeposed
	}
	// It renews a lease of which a third is over.
	d.renewed = now.Add(-d.config.Lease / 3)
	d.worked = d.worked || r.Steps > 0
	return r.More, r.Deliveries > 0, nil
}

// fetch reads what is due into memory, if there is room, and says whether to look again soon.
func (d *dispatch) fetch(ctx context.Context) (again bool, err error) {
	limit := d.window() - len(d.known)
	if limit < d.window()/4 {
		return true, nil
	}
	limit = min(limit, d.fetched.now)
	p := queries.DueDeliveriesParams{
		RowLimit: int32(limit), Each: int32(d.share()), Flying: make([]string, 0, len(d.known)),
		FlyingSubscriptions: make([]string, 0, len(d.known)), AfterTenant: d.afterTenant, AfterSubscription: d.afterSubscription,
	}
	for id, j := range d.known {
		p.Flying = append(p.Flying, id.String())
		p.FlyingSubscriptions = append(p.FlyingSubscriptions, j.delivery.SubscriptionID.String())
	}
	var (
		rows []queries.Delivery
		jobs []*job
	)
	err = d.call(ctx, func(ctx context.Context) (err error) {
		if rows, err = d.queries.DueDeliveries(ctx, p); err != nil {
			return fmt.Errorf("due deliveries: %w", err)
		}
		jobs, err = d.load(ctx, rows)
		return err
	})
	d.fetched.after(err)
	if err != nil {
		return false, err
	}
	again = d.afterTenant != "" // From the first subscription on.
	d.afterTenant, d.afterSubscription = "", uuid.Nil
	if len(rows) == limit {
		last := rows[len(rows)-1]
		again, d.afterTenant, d.afterSubscription = true, last.TenantID, last.SubscriptionID
	}
	// What failed while this was read is not noted yet.
	failed := map[uuid.UUID]bool{}
	for _, r := range d.ended {
		failed[r.job.delivery.SubscriptionID] = failed[r.job.delivery.SubscriptionID] || r.outcome != "delivered"
	}
	for _, j := range jobs {
		if failed[j.delivery.SubscriptionID] {
			again = true
			continue
		}
		d.known[j.delivery.ID] = j
		d.queue(j)
	}
	return again, nil
}

// queue makes a job ready, or has it wait for those of its instance that are before it.
func (d *dispatch) queue(j *job) {
	if c, ordered := j.chain(); ordered {
		list := append(d.chains[c], j)
		d.chains[c] = list
		for i := len(list) - 1; i > 0 && !list[i-1].begun && *list[i-1].delivery.Version > *j.delivery.Version; i-- {
			list[i-1], list[i] = list[i], list[i-1] // It was replayed.
		}
		if list[0].begun || len(list) > 1 && list[0] != j {
			return
		}
		if len(list) > 1 { // It is before one that is ready.
			d.unready(list[1])
		}
	}
	d.ready(j)
}

// ready has a job wait for its lane alone. One that there is nothing to send for has ended.
func (d *dispatch) ready(j *job) {
	l := d.lanes[j.lane]
	if l == nil {
		l = &lane{limit: min(2, d.config.PerEndpoint)}
		d.lanes[j.lane] = l
		if j.delivery.Callback {
			name := hostOf(j.message.url)
			if d.hosts[name] == nil {
				d.hosts[name] = &callbackHost{name: name}
			}
			l.callbacks = d.hosts[name]
			l.callbacks.lanes++
		}
	}
	switch {
	case j.message.url == "":
		d.void(j, "the subscription was deleted")
	case j.delivery.InstanceID != nil && j.event == nil:
		d.void(j, "the instance was removed before it could be told of")
	default:
		l.ready = append(l.ready, j)
	}
}

func (d *dispatch) unready(j *job) {
	l := d.lanes[j.lane]
	l.ready = slices.DeleteFunc(l.ready, func(r *job) bool { return r == j })
}

// void ends a job without an attempt.
func (d *dispatch) void(j *job, why string) {
	d.ended = append(d.ended, result{job: j, outcome: "void", answer: answer{failure: why}})
	d.over(j)
}

// over makes the next job of an instance ready.
func (d *dispatch) over(j *job) {
	j.over = true
	c, ordered := j.chain()
	if !ordered {
		return
	}
	list := slices.DeleteFunc(d.chains[c], func(o *job) bool { return o == j })
	if len(list) == 0 {
		delete(d.chains, c)
		return
	}
	d.chains[c] = list
	d.ready(list[0])
}

// A step is what a delivery tells of.
type step struct {
	tenant   string
	instance uuid.UUID
	version  int64
}

// load reads what belongs to deliveries: where they go, and what they tell of.
func (d *dispatch) load(ctx context.Context, rows []queries.Delivery) ([]*job, error) {
	var (
		of     queries.EventsOfParams
		to     = make([]subscriptionKey, len(rows))
		events = map[step]*queries.Event{}
		jobs   = make([]*job, len(rows))
	)
	if len(rows) == 0 {
		return nil, nil
	}
	for i, r := range rows {
		to[i] = subscriptionKey{r.TenantID, r.SubscriptionID}
		if r.InstanceID == nil {
			continue
		}
		k := step{r.TenantID, *r.InstanceID, *r.Version}
		if _, asked := events[k]; !asked {
			events[k] = nil
			of.Tenants, of.Instances, of.Versions = append(of.Tenants, k.tenant), append(of.Instances, k.instance), append(of.Versions, k.version)
		}
	}
	endpoints, err := d.endpoints(ctx, to)
	if err != nil {
		return nil, err
	}
	list, err := d.queries.EventsOf(ctx, of)
	if err != nil {
		return nil, fmt.Errorf("events: %w", err)
	}
	for i, e := range list {
		events[step{e.TenantID, e.InstanceID, e.Version}] = &list[i]
	}
	for i, r := range rows {
		j := &job{delivery: r, lane: laneKey{tenant: r.TenantID, subscription: r.SubscriptionID}}
		j.message.id = r.ID.String()
		j.message.endpoint = endpoints[to[i]].endpoint
		if r.Callback {
			j.lane = laneKey{url: j.message.url}
		}
		if r.InstanceID != nil {
			j.event = events[step{r.TenantID, *r.InstanceID, *r.Version}]
		}
		jobs[i] = j
	}
	return jobs, nil
}

type subscriptionKey struct {
	tenant string
	id     uuid.UUID
}

type subscribed struct {
	endpoint
	disabled bool
}

// endpoints looks up where deliveries of subscriptions, and of callbacks, go. Those that are
// gone are missing.
func (d *dispatch) endpoints(ctx context.Context, keys []subscriptionKey) (map[subscriptionKey]subscribed, error) {
	var p queries.EndpointsParams
	asked, found := map[subscriptionKey]bool{}, map[subscriptionKey]subscribed{}
	for _, k := range keys {
		if !asked[k] {
			asked[k] = true
			p.Tenants, p.Ids = append(p.Tenants, k.tenant), append(p.Ids, k.id)
		}
	}
	list, err := d.queries.Endpoints(ctx, p)
	if err != nil {
		return nil, fmt.Errorf("endpoints: %w", err)
	}
	for _, e := range list {
		s := subscribed{endpoint: endpoint{url: e.Url}, disabled: e.Disabled}
		for _, secret := range []string{e.Secret, e.PreviousSecret} {
			if secret != "" {
				s.secrets = append(s.secrets, secret)
			}
		}
		if len(s.secrets) == 0 && d.config.Secret != "" {
			s.secrets = []string{d.config.Secret}
		}
		found[subscriptionKey{e.TenantID, e.ID}] = s
	}
	return found, nil
}

// refreshEvery is for how long a subscription that has changed may be taken for what it was.
const refreshEvery = 100 * time.Millisecond

// refresh has what waits in memory go where its subscription now says, if anywhere.
func (d *dispatch) refresh(ctx context.Context) error {
	if time.Since(d.refreshed) < refreshEvery {
		return nil
	}
	d.refreshed = time.Now()
	var keys []subscriptionKey
	for _, j := range d.known {
		if !j.begun && !j.over && !j.delivery.Callback {
			keys = append(keys, subscriptionKey{j.delivery.TenantID, j.delivery.SubscriptionID})
		}
	}
	if len(keys) == 0 {
		return nil
	}
	var now map[subscriptionKey]subscribed
	err := d.call(ctx, func(ctx context.Context) (err error) {
		now, err = d.endpoints(ctx, keys)
		return err
	})
	if err != nil {
		return err
	}
	asked := map[subscriptionKey]bool{}
	for _, k := range keys {
		if asked[k] {
			continue
		}
		asked[k] = true
		if s, there := now[k]; !there || s.disabled {
			d.drop(k) // What was deleted is read again, to be settled.
		}
	}
	for _, j := range d.known {
		if s, there := now[subscriptionKey{j.delivery.TenantID, j.delivery.SubscriptionID}]; there && !j.begun {
			j.message.endpoint = s.endpoint
		}
	}
	return nil
}

// start begins attempts, one of each lane in turn, as many as the limits allow, and puts off
// callbacks that keep failing.
func (d *dispatch) start() {
	if d.stopping || time.Since(d.renewed) > d.config.Lease {
		return // If it may not lead any more, the next call will tell.
	}
	busy := 1
	for _, l := range d.lanes {
		if len(l.ready) > 0 || l.inFlight > 0 {
			busy++
		}
	}
	share := max(d.config.Concurrency/busy, 1)
	for began := true; began; {
		began = false
		for key, l := range d.lanes {
			switch {
			case len(l.ready) > 0:
				full := l.callbacks != nil && l.callbacks.inFlight >= d.config.PerEndpoint
				if l.inFlight < min(l.limit, share) && d.inFlight < d.config.Concurrency && !full {
					began = true
					d.begin(l)
				}
			case l.inFlight == 0 && time.Since(l.used) > time.Minute && time.Since(l.restsUntil) > time.Minute:
				d.close(key)
			}
		}
	}
}

// close forgets a lane.
func (d *dispatch) close(key laneKey) {
	if h := d.lanes[key].callbacks; h != nil {
		if h.lanes--; h.lanes == 0 {
			delete(d.hosts, h.name)
		}
	}
	delete(d.lanes, key)
}

// begin begins the next attempt of a lane.
func (d *dispatch) begin(l *lane) {
	j := l.ready[0]
	l.ready = l.ready[1:]
	if l.callbacks != nil {
		if rest := max(time.Until(l.restsUntil), time.Until(l.callbacks.restsUntil)); rest > 0 {
			d.ended = append(d.ended, result{job: j, outcome: "put-off", delay: rest + rand.N(d.config.Rest)})
			d.over(j)
			return
		}
		l.callbacks.inFlight++
	}
	j.begun = true
	l.used = time.Now()
	l.inFlight++
	d.inFlight++
	m := j.message // The job's may change.
	d.senders.Go(func() {
		a, cut := d.attempt(d.sending, j, m)
		if !cut {
			d.results <- result{job: j, answer: a} // It has room for all that are in flight.
		}
	})
}

// attempt sends a job once. An attempt that was cut off here is none.
func (d *dispatch) attempt(ctx context.Context, j *job, m message) (a answer, cut bool) {
	var err error
	if j.event == nil {
		m.body, err = testEvent(j.delivery.TenantID, m.id, j.delivery.SubscriptionID.String(), j.delivery.CreatedAt)
	} else {
		event := eventOf(*j.event)
		m.body, err = event.CloudEvent()
		if event.Step.Traceparent != nil {
			m.traceparent = *event.Step.Traceparent
		}
		for _, id := range []*string{event.Instance.CorrelationID, event.Step.CorrelationID} {
			if id != nil {
				m.correlationID = *id
			}
		}
	}
	if err != nil {
		return answer{failure: "the event cannot be written"}, false
	}
	a = send(ctx, d.client, d.config.Timeout, m)
	return a, ctx.Err() != nil && a.status == 0
}

// end takes a result, and decides what the answer means.
func (d *dispatch) end(r result) {
	l := d.lanes[r.job.lane]
	l.inFlight--
	d.inFlight--
	if l.callbacks != nil {
		l.callbacks.inFlight--
		if r.answer.status > 0 {
			l.callbacks.failures = 0
		} else {
			l.callbacks.failed(d.config.Rest)
		}
	}
	r.outcome, r.delay = d.decide(r)
	d.ended = append(d.ended, r)
	if r.outcome == "delivered" {
		l.failures = 0
		l.limit = min(l.limit+1, d.config.PerEndpoint)
		d.over(r.job)
		return
	}
	l.limit = max(l.limit/2, 1)
	if r.job.delivery.Callback {
		d.over(r.job)
		l.failed(d.config.Rest)
	} else {
		// Whether there is more to be sent is for the database to say.
		r.job.over = true
		d.drop(subscriptionKey{r.job.delivery.TenantID, r.job.delivery.SubscriptionID})
	}
	d.config.Logger.Debug("a webhook did not get there", "delivery", r.job.delivery.ID, "outcome", r.outcome, "error", r.answer.failure)
}

// decide says what comes of an answer, and for how long to wait if that is another attempt.
func (d *dispatch) decide(r result) (outcome string, delay time.Duration) {
	attempts := int(r.job.delivery.Attempts) + 1
	switch {
	case r.answer.failure == "":
		return "delivered", 0
	case r.answer.status == http.StatusGone:
		return "gone", 0
	case attempts >= d.config.MaxAttempts:
		return "dead", 0
	case r.answer.retryAfter > 0:
		return "retry", r.answer.retryAfter
	default:
		return "retry", backoff(d.config.Backoff, attempts)
	}
}

// drop forgets what waits in memory for a subscription. What is under way ends by itself.
func (d *dispatch) drop(k subscriptionKey) {
	for id, j := range d.known {
		if j.delivery.TenantID != k.tenant || j.delivery.SubscriptionID != k.id {
			continue
		}
		if c, ordered := j.chain(); ordered {
			if list := slices.DeleteFunc(d.chains[c], func(o *job) bool { return !o.begun || o.over }); len(list) > 0 {
				d.chains[c] = list
			} else {
				delete(d.chains, c)
			}
		}
		if !j.begun && !j.over {
			delete(d.known, id)
		}
	}
	if l := d.lanes[laneKey{tenant: k.tenant, subscription: k.id}]; l != nil {
		l.ready = nil
	}
}

// backoff is how long to wait after so many attempts: anything up to base, which doubles with
// each (full jitter, so that what failed together does not come back together).
func backoff(base time.Duration, attempts int) time.Duration {
	most := maxWait
	if n := attempts - 1; n < 30 && base<<n > 0 {
		most = min(base<<n, maxWait)
	}
	return rand.N(most) + 1
}

// settle notes how attempts ended.
func (d *dispatch) settle(ctx context.Context) error {
	ended := d.ended
	d.ended = nil
	if len(ended) == 0 {
		return nil
	}
	p := queries.SettleDeliveriesParams{Term: d.term, Rest: interval(d.config.Rest)}
	for _, r := range ended {
		p.Tenants = append(p.Tenants, r.job.delivery.TenantID)
		p.Ids = append(p.Ids, r.job.delivery.ID)
		p.Outcomes = append(p.Outcomes, r.outcome)
		p.Delays = append(p.Delays, interval(r.delay))
		p.Pauses = append(p.Pauses, pgtype.Interval{
			Microseconds: r.answer.retryAfter.Microseconds(), Valid: r.answer.retryAfter > 0,
		})
		p.Statuses = append(p.Statuses, int32(r.answer.status))
		p.Errors = append(p.Errors, r.answer.failure)
		p.Responses = append(p.Responses, r.answer.response)
	}
	leads := false
	err := d.call(ctx, func(ctx context.Context) (err error) {
		leads, err = d.queries.SettleDeliveries(ctx, p)
		return err
	})
	switch {
	case err != nil:
		return fmt.Errorf("settle: %w", err)
	case !leads:
		return errDeposed
	}
	d.worked = true
	for _, r := range ended {
		delete(d.known, r.job.delivery.ID)
	}
	return nil
}

// purge deletes some of what the log need not have any more.
func (d *dispatch) purge(ctx context.Context) error {
	const batch = 1000
	var purged int32
	err := d.call(ctx, func(ctx context.Context) (err error) {
		purged, err = d.queries.PurgeDeliveries(ctx, queries.PurgeDeliveriesParams{
			RowLimit: batch, Delivered: interval(d.config.KeepDelivered), Dead: interval(d.config.KeepDead),
		})
		return err
	})
	if err != nil {
		return fmt.Errorf("purge deliveries: %w", err)
	}
	pause := time.Minute
	if purged >= batch {
		pause = 50 * time.Millisecond
	}
	d.nextPurge = time.Now().Add(pause)
	return nil
}
