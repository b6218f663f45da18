// Adds the respondents of a list through a gateway. Run again, it goes on where it stopped.
//
//	buf generate && go run . [-target HOST:PORT] [-tries COUNT] ROWS RESULTS
//
// ROWS has an AddRespondentRequest as JSON on each line. RESULTS gets a line for each answer: ADDED, DUPLICATE, FAILED
// or IN_DOUBT. A row is known by its line, its collector and its crk. Exit code: 0 all are added, 1 not all are
// answered (run it again), 2 wrong arguments or rows, 3 some failed, 4 some are in doubt.
package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"iter"
	"log"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"time"

	"example.com/bulk/invitation"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/protobuf/encoding/protojson"
)

var options = []grpc.DialOption{
	grpc.WithTransportCredentials(insecure.NewCredentials()),
	// The stream has no deadline. Who else would notice that the gateway's machine is gone?
	grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
	// The default waits up to two minutes before it looks again.
	grpc.WithConnectParams(grpc.ConnectParams{
		MinConnectTimeout: 10 * time.Second,
		Backoff: backoff.Config{
			BaseDelay: time.Second / 2, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 5 * time.Second,
		},
	}),
}

type rowKey struct {
	Row         int    `json:"row"`
	CollectorID string `json:"collectorId"`
	Crk         string `json:"crk"`
}

type row struct {
	key     rowKey
	request *invitation.AddRespondentRequest
}

type result struct {
	rowKey
	Outcome string `json:"outcome"`
	Reason  string `json:"reason,omitempty"`
	Message string `json:"message,omitempty"`
}

// read yields the rows, one at a time: a list may be larger than the memory.
func read(path string) iter.Seq2[row, error] {
	return func(yield func(row, error) bool) {
		file, err := os.Open(path)
		if err != nil {
			yield(row{}, err)
			return
		}
		defer file.Close()
		lines := bufio.NewScanner(file)
		lines.Buffer(nil, 1<<20)
		for number := 1; lines.Scan(); number++ {
			if len(bytes.TrimSpace(lines.Bytes())) == 0 {
				continue
			}
			request := &invitation.AddRespondentRequest{}
			if protojson.Unmarshal(lines.Bytes(), request) != nil {
				// Not its words: they quote the row, which is about a person.
				yield(row{}, fmt.Errorf("%s: line %d is no AddRespondentRequest", path, number))
				return
			}
			if !yield(row{rowKey{number, request.CollectorId, request.Crk}, request}, nil) {
				return
			}
		}
		if err := lines.Err(); err != nil {
			yield(row{}, err)
		}
	}
}

type results struct {
	file     *os.File
	lock     sync.Mutex
	outcomes map[rowKey]string
}

func openResults(path string) (*results, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	results, whole := &results{file: file, outcomes: map[rowKey]string{}}, int64(0)
	for lines := bufio.NewReader(file); ; {
		line, err := lines.ReadBytes('\n')
		if err == io.EOF {
			// A last line without its end: its writer was killed. The row is sent again.
			return results, file.Truncate(whole)
		} else if err != nil {
			return nil, err
		}
		var known result
		if err := json.Unmarshal(line, &known); err != nil {
			return nil, err
		}
		results.outcomes[known.rowKey] = known.Outcome
		whole += int64(len(line))
	}
}

func (r *results) of(key rowKey) string {
	r.lock.Lock()
	defer r.lock.Unlock()
	return r.outcomes[key]
}

func (r *results) add(result result) {
	line, err := json.Marshal(result)
	if err == nil {
		_, err = r.file.Write(append(line, '\n'))
	}
	if err != nil {
		log.Fatal(err)
	}
	r.lock.Lock()
	defer r.lock.Unlock()
	r.outcomes[result.rowKey] = result.Outcome
}

// missing yields the rows without a result.
func (r *results) missing(rows string) iter.Seq[row] {
	return func(yield func(row) bool) {
		for row, err := range read(rows) {
			if err != nil {
				log.Fatal(err)
			}
			if r.of(row.key) == "" && !yield(row) {
				return
			}
		}
	}
}

// tally counts the outcomes of all rows.
func (r *results) tally(rows string) map[string]int {
	outcomes := map[string]int{}
	for row, err := range read(rows) {
		if err != nil {
			log.Fatal(err)
		}
		outcomes[cmp.Or(r.of(row.key), "missing")]++
	}
	return outcomes
}

// [core]

// addMissing opens one stream with each row that has no result yet. It returns when another one makes sense.
func addMissing(client invitation.InvitationServiceClient, rows string, results *results) (notBefore time.Time) {
	stream, err := client.StreamAddRespondent(context.Background())
	if err != nil {
		log.Print("no stream: ", err)
		return
	}
	later := map[string]int{}
	var sent sync.Map
	var sender sync.WaitGroup
	defer sender.Wait()
	sender.Go(func() {
		sequence := uint64(0)
		for row := range results.missing(rows) {
			sent.Store(sequence, row.key)
			sequence++
			// Waits where the gateway reads no further. Of an error Recv tells the cause.
			if stream.Send(row.request) != nil {
				return
			}
		}
		stream.CloseSend()
	})
	for {
		answer, err := stream.Recv()
		if err != nil {
			if err != io.EOF {
				log.Print("the stream ended: ", err)
			}
			if len(later) > 0 {
				log.Print("to be sent again: ", later)
			}
			if err := results.file.Sync(); err != nil {
				log.Fatal(err)
			}
			return
		}
		key, _ := sent.LoadAndDelete(answer.Sequence)
		result := result{rowKey: key.(rowKey)}
		reason, retry := details(answer.GetError())
		switch {
		case answer.GetAdded() != nil:
			result.Outcome = strings.TrimPrefix(answer.GetAdded().Outcome.String(), "OUTCOME_")
		case retry != nil:
			// It gets no result, so the next stream takes it.
			later[reason]++
			if at := time.Now().Add(retry.RetryDelay.AsDuration()); at.After(notBefore) {
				notBefore = at
			}
			continue
		case reason == "OUTCOME_IN_DOUBT":
			result.Outcome, result.Reason, result.Message = "IN_DOUBT", reason, answer.GetError().Message
		default:
			result.Outcome, result.Reason, result.Message = "FAILED", reason, answer.GetError().Message
		}
		results.add(result)
	}
}

// [/core]

// details returns the reason of an error, and when another try makes sense, if one does.
func details(status *status.Status) (reason string, retry *errdetails.RetryInfo) {
	for _, packed := range status.GetDetails() {
		detail, err := packed.UnmarshalNew()
		if err != nil {
			continue
		}
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			reason = detail.Reason
		case *errdetails.RetryInfo:
			retry = detail
		}
	}
	return
}

func run() int {
	log.SetFlags(0)
	target := flag.String("target", "127.0.0.1:50051", "the gateway")
	tries := flag.Int("tries", 10, "streams in a row that may bring no result")
	flag.Parse()
	rows, path := flag.Arg(0), flag.Arg(1)
	// A list with a broken line is refused before any of it is sent.
	for _, err := range read(rows) {
		if err != nil {
			log.Print(err)
			return 2
		}
	}
	results, err := openResults(path)
	if err != nil {
		log.Print(err)
		return 2
	}
	connection, err := grpc.NewClient(*target, options...)
	if err != nil {
		log.Print(err)
		return 2
	}
	defer connection.Close()
	client := invitation.NewInvitationServiceClient(connection)
	for wait, fruitless := time.Duration(0), 0; ; {
		outcomes := results.tally(rows)
		switch {
		case outcomes["missing"] > 0 && fruitless == *tries:
			log.Print("gave up, run it again: ", outcomes)
			return 1
		case outcomes["missing"] == 0:
			log.Print(outcomes)
			return code(outcomes)
		}
		time.Sleep(wait)
		known := len(results.outcomes)
		notBefore := addMissing(client, rows, results)
		if fruitless++; len(results.outcomes) > known {
			fruitless = 0
		}
		// With jitter, so that not all who were cut off come back at once.
		backoff := time.Duration((1 + rand.Float64()) * float64(time.Second<<min(fruitless, 4)))
		wait = max(time.Until(notBefore), backoff)
	}
}

func code(outcomes map[string]int) int {
	switch {
	case outcomes["IN_DOUBT"] > 0:
		return 4
	case outcomes["FAILED"] > 0:
		return 3
	}
	return 0
}

func main() { os.Exit(run()) }
