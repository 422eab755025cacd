/* libmongoc's loop without decoding: it only looks for the number in each event, and is the server's own limit for one
   cursor. It takes its URI, the time to begin at, the number of events and "updateLookup" or "" as arguments. */
#include <mongoc/mongoc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double now (clockid_t clock)
{
   struct timespec time;
   clock_gettime (clock, &time);
   return (double) time.tv_sec + (double) time.tv_nsec / 1e9;
}

int main (int count_of_arguments, char **arguments)
{
   if (count_of_arguments != 6) {
      return 2;
   }
   mongoc_init ();
   const int64_t count = atoll (arguments[4]);
   mongoc_client_t *client = mongoc_client_new (arguments[1]);
   mongoc_collection_t *collection = mongoc_client_get_collection (client, "shop", "orders");
   bson_t pipeline = BSON_INITIALIZER, options = BSON_INITIALIZER;
   BSON_APPEND_TIMESTAMP (&options, "startAtOperationTime", (uint32_t) atoll (arguments[2]),
                          (uint32_t) atoll (arguments[3]));
   if (strlen (arguments[5])) {
      BSON_APPEND_UTF8 (&options, "fullDocument", arguments[5]);
   }
   double before = 0, cpu = 0;
   mongoc_change_stream_t *stream = mongoc_collection_watch (collection, &pipeline, &options);
   const bson_t *change;
   int64_t seen = 0;
   while (seen < count) {
      if (!mongoc_change_stream_next (stream, &change)) {
         bson_error_t error;
         if (mongoc_change_stream_error_document (stream, &error, NULL)) {
            fprintf (stderr, "%s\n", error.message);
            return 1;
         }
         continue;
      }
      if (!seen) {
         before = now (CLOCK_MONOTONIC);
         cpu = now (CLOCK_PROCESS_CPUTIME_ID);
      }
      bson_iter_t iterator, number;
      if (!bson_iter_init (&iterator, change) ||
          !bson_iter_find_descendant (&iterator, "fullDocument.number", &number) ||
          bson_iter_as_int64 (&number) != seen) {
         fprintf (stderr, "the events came in another order\n");
         return 1;
      }
      seen++;
   }
   const double seconds = now (CLOCK_MONOTONIC) - before, used = now (CLOCK_PROCESS_CPUTIME_ID) - cpu;
   printf ("{\"rate\": %f, \"cpu\": %f}\n", (double) count / seconds, used / (double) count * 1e6);
   mongoc_change_stream_destroy (stream);
   mongoc_collection_destroy (collection);
   mongoc_client_destroy (client);
   mongoc_cleanup ();
   return 0;
}
